"""Pull and push beside a real registry, and through a proxy that spoils what it can."""

from __future__ import annotations

import json
import os
import random
import select
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

import layerfs
from layerfs.errors import Busy, Corrupt, LayerfsError, NotFound, OperationFailed, PermissionDenied
from layerfs.events import Progress
from layerfs.registry import transport
from layerfs.registry.credentials import Credentials
from layerfs.registry.options import Options
from tests.support import children, invariants
from tests.support import images as samples
from tests.support.registry import PASSWORD, USER, Proxy, proxied, registry

NAME = "team/test:1"
OPTIONS = Options(find=lambda _host: None, timeout=20)
BIG = random.Random(1).randbytes(3 << 20)
"""What gzip cannot make smaller: a blob of several pieces."""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Give a registry that has team/test:1."""
    root = tmp_path_factory.mktemp("registry")
    layers: list[samples.Layer] = [{**samples.BASE, "big": BIG}, samples.EDIT, samples.SHRINK]
    samples.write_layout(root / "layout", layers)
    with registry(root) as host:
        with layerfs.open(root / "store", driver="copy") as store:
            store.import_image(root / "layout", unpack=False)
            store.push_image("test:1", f"{host}/{NAME}", options=OPTIONS)
        yield host


@pytest.fixture
def proxy(host: str) -> Iterator[Proxy]:
    """Give a proxy before the registry that does nothing yet."""
    with proxied(host) as proxy:
        yield proxy


@pytest.fixture
def store(fresh_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[layerfs.Store]:
    """Give an empty store; nobody waits for a second try longer than a moment."""
    monkeypatch.setattr(transport, "_LONGEST_PAUSE", 0.02)
    with layerfs.open(fresh_dir / "store", driver="copy") as store:
        yield store


def on(path: str, fault: str, times: int = 1) -> Callable[[str, str, int], str]:
    """Let a fault befall the first requests whose path has a part."""
    return lambda method, place, number: fault if method == "GET" and path in place and number <= times else ""


def test_digests_are_kept(host: str, store: layerfs.Store, tmp_path: Path) -> None:
    pulled = store.pull_image(f"{host}/{NAME}", options=OPTIONS)
    assert pulled.names == (f"{host}/{NAME}",)
    with store.clone(f"{host}/{NAME}") as clone, clone.mounted() as root:
        assert (root / "etc/issue").read_text() == "layerfs test, second layer\n"
        assert (root / "big").read_bytes() == BIG
        assert not (root / "var/big").exists()
    store.push_image(f"{host}/{NAME}", f"{host}/other/copy:2", options=OPTIONS)
    invariants.check_store(store)
    if shutil.which("skopeo") is None:
        pytest.skip("needs skopeo")
    target = f"dir:{tmp_path}/out"
    subprocess.run(
        ["skopeo", "copy", "--src-tls-verify=false", f"docker://{host}/other/copy:2", target],
        check=True,
        capture_output=True,
    )
    assert (tmp_path / "out/manifest.json").read_bytes() == pulled.manifest.raw


def test_what_is_there_is_not_brought_again(proxy: Proxy, store: layerfs.Store) -> None:
    store.pull_image(f"{proxy.host}/{NAME}", options=OPTIONS)
    proxy.seen.clear()
    store.pull_image(f"{proxy.host}/{NAME}", options=OPTIONS)
    assert [place for _, place in proxy.seen if "/blobs/" in place] == []
    proxy.seen.clear()
    store.push_image(f"{proxy.host}/{NAME}", options=OPTIONS)
    assert [method for method, place in proxy.seen if method == "PUT"] == ["PUT"]  # the manifest


def test_a_blob_of_another_repository_is_taken_over_there(proxy: Proxy, store: layerfs.Store) -> None:
    store.pull_image(f"{proxy.host}/{NAME}", options=OPTIONS)
    proxy.seen.clear()
    store.push_image(f"{proxy.host}/{NAME}", f"{proxy.host}/mounted/here:1", options=OPTIONS)
    assert [method for method, place in proxy.seen if method == "PUT"] == ["PUT"]
    assert sum("mount=" in place and f"from={NAME[:-2].replace('/', '%2F')}" in place for _, place in proxy.seen) == 4


@pytest.mark.parametrize("fault", ["drop", "cut", "503", "429 0", "flip", "longer", "shorter"])
@pytest.mark.parametrize("path", ["/blobs/", "/manifests/"])
def test_what_befalls_once_is_overcome_or_said(proxy: Proxy, store: layerfs.Store, path: str, fault: str) -> None:
    proxy.fault = on(path, fault)
    if path == "/manifests/" and fault in {"cut", "flip", "longer", "shorter"}:
        with pytest.raises((Corrupt, OperationFailed)):
            store.pull_image(f"{proxy.host}/{NAME}", options=OPTIONS)
        assert store.images() == ()
        assert list(store.blobs.digests()) == []
    else:
        store.pull_image(f"{proxy.host}/{NAME}", options=OPTIONS)
    invariants.check_store(store)


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ("drop", OperationFailed),
        ("cut", OperationFailed),
        ("flip", Corrupt),
        ("longer", Corrupt),
        ("429 0", Busy),
        ("500", OperationFailed),
        ("403", PermissionDenied),
        ("404", NotFound),
    ],
)
def test_what_befalls_always_is_said_and_leaves_nothing(
    proxy: Proxy, store: layerfs.Store, fault: str, kind: type[LayerfsError]
) -> None:
    options = replace(OPTIONS, tries=3)
    proxy.fault = lambda method, path, _number: fault if method == "GET" and "/blobs/" in path else ""
    with pytest.raises(kind) as raised:
        store.pull_image(f"{proxy.host}/{NAME}", options=options)
    assert raised.value.hint
    assert store.images() == ()
    assert list(store.blobs.digests()) == []
    invariants.check_store(store)


def test_it_goes_on_where_it_was_cut_off(proxy: Proxy, store: layerfs.Store) -> None:
    proxy.fault = on("/blobs/", "cut", times=2)
    store.pull_image(f"{proxy.host}/{NAME}", options=OPTIONS)
    ranges = [headers["Range"] for headers in proxy.headers if "Range" in headers]
    assert any(int(text.removeprefix("bytes=").removesuffix("-")) > 1 << 20 for text in ranges)
    assert store.blobs.has(store.image(f"{proxy.host}/{NAME}").manifest.layers[0])


def test_a_registry_without_ranges_begins_anew(proxy: Proxy, store: layerfs.Store) -> None:
    proxy.fault = lambda method, path, number: (
        ("cut" if number == 1 else "no ranges") if method == "GET" and "/blobs/" in path else ""
    )
    store.pull_image(f"{proxy.host}/{NAME}", options=OPTIONS)
    invariants.check_store(store)


def test_a_token_is_fetched_with_the_credentials(proxy: Proxy, store: layerfs.Store) -> None:
    proxy.fault = lambda _method, path, _number: "token" if path.startswith("/token") else "bearer"
    known = replace(OPTIONS, find=lambda _host: Credentials(USER, PASSWORD))
    store.pull_image(f"{proxy.host}/{NAME}", options=known)
    tokens = [place for _, place in proxy.seen if place.startswith("/token")]
    assert tokens == ["/token?service=test&scope=repository%3Ateam%2Ftest%3Apull"]
    with pytest.raises(PermissionDenied, match="gives no token"):
        store.pull_image(f"{proxy.host}/{NAME}", options=OPTIONS)


def test_basic_credentials(proxy: Proxy, store: layerfs.Store) -> None:
    proxy.fault = lambda *_: "basic"
    with pytest.raises(PermissionDenied, match="wants credentials") as raised:
        store.pull_image(f"{proxy.host}/{NAME}", options=OPTIONS)
    assert f"docker login {proxy.host}" in str(raised.value.hint)
    store.pull_image(f"{proxy.host}/{NAME}", options=replace(OPTIONS, find=lambda _host: Credentials(USER, PASSWORD)))


def test_credentials_go_to_no_other_host(proxy: Proxy, host: str, store: layerfs.Store) -> None:
    with proxied(host) as other:
        proxy.fault = lambda method, path, _number: (
            f"to http://{other.host}{path}" if "/blobs/" in path and method == "GET" else "basic"
        )
        options = replace(OPTIONS, find=lambda _host: Credentials(USER, PASSWORD))
        store.pull_image(f"{proxy.host}/{NAME}", options=options)
        assert other.headers
        assert not any("Authorization" in headers for headers in other.headers)


def test_redirects_end_and_never_lead_out_of_tls(proxy: Proxy, store: layerfs.Store) -> None:
    proxy.fault = lambda _method, path, _number: f"to http://{proxy.host}{path}" if "/blobs/" in path else ""
    with pytest.raises(OperationFailed, match="without end"):
        store.pull_image(f"{proxy.host}/{NAME}", options=OPTIONS)
    proxy.fault = lambda _method, path, _number: "to http://example.org/" if "/blobs/" in path else ""
    with pytest.raises(PermissionDenied, match="not encrypted"):
        store.pull_image(f"{proxy.host}/{NAME}", options=OPTIONS)
    proxy.fault = lambda _method, path, _number: "to file:///etc/passwd" if "/blobs/" in path else ""
    with pytest.raises(PermissionDenied, match="not encrypted"):
        store.pull_image(f"{proxy.host}/{NAME}", options=OPTIONS)


def test_a_mirror_is_asked_first_and_the_registry_where_it_lacks_something(
    proxy: Proxy, host: str, store: layerfs.Store
) -> None:
    options = replace(OPTIONS, mirrors={host: (proxy.host,)})
    proxy.fault = lambda _method, path, _number: "404" if "/blobs/" in path else ""
    pulled = store.pull_image(f"{host}/{NAME}", options=options)
    assert ("GET", "/v2/team/test/manifests/1") in proxy.seen
    assert pulled.names == (f"{host}/{NAME}",)
    proxy.fault = lambda *_: "404"
    assert store.pull_image(f"{host}/{NAME}", options=options).digest == pulled.digest


def test_what_is_not_there(host: str, store: layerfs.Store) -> None:
    with pytest.raises(NotFound, match="MANIFEST_UNKNOWN"):
        store.pull_image(f"{host}/team/test:9", options=OPTIONS)
    with pytest.raises(NotFound):
        store.pull_image(f"{host}/nobody/nothing:1", options=OPTIONS)
    with pytest.raises(OperationFailed, match="does not answer"):
        store.pull_image("127.0.0.1:1/team/test:1", options=replace(OPTIONS, tries=2))
    with pytest.raises(NotFound):
        store.push_image("nothing:1", f"{host}/x:1", options=OPTIONS)


def test_a_digest_in_the_name_is_held_to(proxy: Proxy, host: str, store: layerfs.Store) -> None:
    digest = store.pull_image(f"{host}/{NAME}", options=OPTIONS).digest
    assert store.pull_image(f"{host}/team/test@{digest}", options=OPTIONS).digest == digest
    proxy.fault = on("/manifests/", "flip", times=9)
    with pytest.raises(LayerfsError):
        store.pull_image(f"{proxy.host}/team/test@{digest}", options=OPTIONS)


def test_plain_http_is_for_this_host_or_those_who_ask_for_it() -> None:
    assert Options().allows_plain("localhost:5000")
    assert Options().allows_plain("127.0.0.9")
    assert Options().allows_plain("[::1]:5000")
    assert not Options().allows_plain("registry.example.org")
    assert not Options().allows_plain("localhost.example.org")
    assert Options(plain_http=True).allows_plain("registry.example.org")
    assert Options().hosts("docker.io") == ("registry-1.docker.io",)


def test_push_again_after_a_fault(proxy: Proxy, host: str, store: layerfs.Store) -> None:
    store.pull_image(f"{host}/{NAME}", options=OPTIONS)
    proxy.fault = lambda method, _path, number: (
        "503" if method in {"POST", "PUT"} and number == 1 else "drop" if method == "HEAD" and number == 1 else ""
    )
    store.push_image(f"{host}/{NAME}", f"{proxy.host}/pushed/again:1", options=OPTIONS)
    with layerfs.open(store.path.parent / "second", driver="copy") as second:
        assert (
            second.pull_image(f"{host}/pushed/again:1", options=OPTIONS).digest == store.image(f"{host}/{NAME}").digest
        )


def test_the_command(host: str, fresh_dir: Path) -> None:
    def run(*words: str) -> str:
        program = ["layerfs", "--store", str(fresh_dir / "cli"), "--backend", "copy"]
        return subprocess.run([*program, *words], check=True, capture_output=True, text=True).stdout

    pulled = json.loads(run("--json", "image", "pull", f"{host}/{NAME}", "--name", "mine:1"))["images"][0]
    assert pulled["names"] == ["mine:1"]
    assert run("image", "push", "mine:1", f"{host}/by/command:1").strip() == f"{host}/by/command:1@{pulled['digest']}"


def test_a_pull_that_was_cut_off_goes_on_under_its_lease(proxy: Proxy, store: layerfs.Store) -> None:
    fetched: list[str] = []

    def cut_off(event: Progress) -> None:
        if event.action == "unpack" and event.item == fetched[-1]:
            raise KeyboardInterrupt

    with layerfs.open(store.path.parent / "other", driver="copy") as other:  # to know which layer is the last
        image = other.pull_image(f"{proxy.host}/{NAME}", options=OPTIONS)
        fetched += [layer.digest for layer in image.manifest.layers]
    with store.lease(timedelta(hours=1)) as lease:
        with pytest.raises(KeyboardInterrupt):
            store.pull_image(
                f"{proxy.host}/{NAME}", options=replace(OPTIONS, parallel=1), lease=lease, listener=cut_off
            )
        store.prune(store.plan_prune())
        kept = set(store.blobs.digests())
        assert kept >= {image.manifest.config.digest, *fetched}
        proxy.seen.clear()
        store.pull_image(f"{proxy.host}/{NAME}", options=OPTIONS, lease=lease)
        assert [place for _, place in proxy.seen if "/blobs/" in place] == []
    invariants.check_store(store)


def test_prunes_beside_a_pull_take_nothing_of_it(host: str, store: layerfs.Store) -> None:
    store.blobs.put_bytes(b"nobody's")
    orders, go = os.pipe()

    def prune_for_ever() -> None:
        with layerfs.open(store.path) as other:
            while not select.select([orders], [], [], 0)[0]:
                other.prune(other.plan_prune())

    child = children.start(prune_for_ever)
    for _ in range(5):
        image = store.pull_image(f"{host}/{NAME}", options=OPTIONS)
        with store.clone(image.digest) as clone, clone.mounted() as root:
            assert (root / "big").read_bytes() == BIG
        store.remove_image(image.digest)
    os.write(go, b"x")
    assert os.waitpid(child, 0)[1] == 0
    os.close(go)
    os.close(orders)
    store.prune(store.plan_prune())
    assert list(store.blobs.digests()) == []
    invariants.check_store(store)

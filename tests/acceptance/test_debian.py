"""A real Debian image, as its users meet it: its tree, a shell and apt in a clone, a commit, other people's tools."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import socket
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

import layerfs
from layerfs import ArchiveFormat
from tests.acceptance import trees
from tests.acceptance.conftest import Stopwatch
from tests.support import debian, drivers, invariants

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.host]

APT = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C"}
PACKAGE = "ed"
"""Small, without dependencies, and in the main component of Debian and of Ubuntu."""


@pytest.fixture
def store(driver_name: str, driver_root: Path) -> Iterator[layerfs.Store]:
    with layerfs.open(driver_root / "store", driver=driver_name) as store:
        yield store
        invariants.check_store(store)


def imported(store: layerfs.Store, source: Path, *, unpack: bool = True) -> layerfs.Image:
    (image,) = store.import_image(source, names=[debian.REFERENCE], unpack=unpack)
    return image


def tree_of(store: layerfs.Store, image: str) -> trees.Tree:
    with store.clone(image) as clone, clone.mounted() as root:
        return trees.read(root)


# -- the tree ----------------------------------------------------------------------------------------------------------


def test_the_image_is_worth_testing(umoci_tree: trees.Tree) -> None:
    """Hold what the other tests rely on: if the recipe lost one of these, they would prove less than they say."""
    assert len(umoci_tree) > 5000
    kinds = umoci_tree.keys() & {b"srv/kinds/fifo", b"srv/kinds/block", b"srv/kinds/character", b"dev/null"}
    assert sorted(umoci_tree[path].mode[0] for path in kinds) == ["b", "c", "c", "p"]
    names = {name for entry in umoci_tree.values() for name, _ in entry.xattrs}
    assert names >= {b"security.capability", b"user.layerfs.file", b"user.layerfs.directory", b"trusted.layerfs"}
    assert names >= {b"system.posix_acl_access", b"system.posix_acl_default"}
    assert umoci_tree[b"usr/bin/passwd"].mode == "-rwsr-xr-x"
    assert b"usr/bin/a-third-less" in umoci_tree[b"usr/bin/less"].links
    assert [path for path in umoci_tree if path.startswith(b"usr/share/doc/grep/")] == [b"usr/share/doc/grep/new"]
    assert not umoci_tree.keys() & {b"usr/share/doc/gzip", b"usr/share/doc/bash", b"etc/hostname"}
    assert umoci_tree[b"usr/share/doc/apt"].mode == "-rw-r--r--"
    assert umoci_tree[b"etc/issue.net"].is_directory


def test_the_tree_is_the_one_that_umoci_unpacks(
    store: layerfs.Store, debian_layout: Path, umoci_tree: trees.Tree, driver_name: str, stopwatch: Stopwatch
) -> None:
    with stopwatch(f"import of the Debian image, {driver_name}"):
        image = imported(store, debian_layout)
    assert len(image.manifest.layers) == debian.LAYERS
    with store.clone(image.name) as clone:
        with clone.mounted() as root:
            trees.check_same(umoci_tree, trees.read(root), f"{driver_name} and umoci")
        assert list(clone.changes()) == [], "to read a clone changes nothing"


# -- other people's tools ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ArchiveFormat)
def test_skopeo_copies_the_export_and_back_with_every_digest(
    form: ArchiveFormat, debian_layout: Path, fresh_dir: Path
) -> None:
    """No driver is concerned: an export reads the blobs alone."""
    transport = {ArchiveFormat.OCI_DIR: "oci", ArchiveFormat.OCI_ARCHIVE: "oci-archive"}.get(form, "docker-archive")
    if not shutil.which("skopeo"):
        pytest.skip("skopeo is not installed")
    ours, theirs = fresh_dir / "ours", fresh_dir / "theirs"
    with layerfs.open(fresh_dir / "store", driver="copy") as store:
        image = imported(store, debian_layout, unpack=False)
        store.export_image([image.name], ours, format=form)
        copy = ["skopeo", "--insecure-policy", "copy", "--quiet", f"{transport}:{ours}:{debian.REFERENCE}"]
        subprocess.run([*copy, f"{transport}:{theirs}:{debian.REFERENCE}"], check=True, capture_output=True)
        (back,) = store.import_image(theirs, names=["back"], unpack=False)
    assert back.manifest.config.digest == image.manifest.config.digest
    assert back.config.diff_ids == image.config.diff_ids
    if form is ArchiveFormat.DOCKER_ARCHIVE:  # layers are plain there, so the manifest is another
        assert [layer.digest for layer in back.manifest.layers] == list(image.config.diff_ids)
    else:
        assert back.digest == image.digest
        assert blobs(theirs) >= blobs(debian_layout) >= {blob.digest for blob in image.manifest.blobs}


def blobs(place: Path) -> set[str]:
    """Return the digests of the blobs in a layout or an archive of one, computed anew."""
    if place.is_dir():
        return {digest(path.read_bytes()) for path in (place / "blobs/sha256").iterdir()}
    with tarfile.open(place) as archive:
        members = [member for member in archive if member.isfile() and member.name.startswith("blobs/sha256/")]
        return {digest(file.read()) for member in members if (file := archive.extractfile(member))}


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


# -- a shell, apt, a commit --------------------------------------------------------------------------------------------


def run(clone: layerfs.Clone, *words: str) -> None:
    status = clone.run(words, environment=APT)
    assert status == 0, f"`{' '.join(words)}` ended with status {status}"


def update(clone: layerfs.Clone) -> None:
    """Let apt in the clone read its sources; skip where the host itself cannot."""
    words = ("apt-get", "--quiet=2", "--error-on=any", "update")
    status = clone.run(words, environment=APT)
    if status and (problem := debian.mirror_problem()):
        pytest.skip(f"this host cannot read its apt sources: {problem}")
    assert status == 0, f"apt works on this host, and in the clone it ended with status {status}"


def edit(root: Path) -> None:
    """Do what a driver may find hard: links of lower files, directories anew, attributes alone, nothing after all."""
    os.link(root / "usr/bin/less", root / "root/less")
    (root / "usr/bin/a-third-less").unlink()
    shutil.rmtree(root / "srv/kinds")
    (root / "srv/kinds").mkdir(mode=0o711)
    (root / "srv/kinds/empty").write_text("a file of a name that was there\n")
    shutil.move(root / "usr/share/doc/libc6", root / "usr/share/doc/moved")  # on overlayfs it is copied: EXDEV
    os.setxattr(root / "etc/passwd", "user.layerfs", b"new")
    os.removexattr(root / "usr/bin/ping", "security.capability")
    os.chown(root / "usr/bin/passwd", 7, 7)  # which takes its setuid bit away
    os.utime(root / "var/spool", ns=(1, 1_000_000_001))
    os.truncate(root / "etc/debconf.conf", 100)
    os.mkfifo(root / "root/fifo")
    os.mknod(root / "root/device", 0o20600, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(root / "root/socket"))
    (root / "usr/share/doc/tar").unlink()
    (root / "usr/share/doc/tar").symlink_to("elsewhere")
    (root / "etc/group").chmod((root / "etc/group").stat().st_mode & 0o7777)
    (root / "opt/gone").mkdir()
    status = (root / "etc").stat()
    (root / "etc/gone").touch()
    (root / "etc/gone").unlink()
    os.utime(root / "etc", ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.fixture
def other(driver_name: str, request: pytest.FixtureRequest) -> Iterator[layerfs.Store]:
    """Give a store of the next driver that is here."""
    here = [found.name for found in drivers.presence() if found.reason is None]
    name = here[(here.index(driver_name) + 1) % len(here)]
    mount: Path = request.getfixturevalue("btrfs_mount" if name == "btrfs" else "fresh_dir")
    with layerfs.open(mount / f"other-than-{driver_name}", driver=name) as store:
        yield store
        invariants.check_store(store)


def test_a_commit_holds_what_apt_and_others_changed_and_travels(
    store: layerfs.Store, other: layerfs.Store, debian_layout: Path, fresh_dir: Path, stopwatch: Stopwatch
) -> None:
    image = imported(store, debian_layout)
    with store.clone(image.name, "apt") as clone:
        with clone.mounted() as root:
            before = trees.read(root)
        update(clone)
        run(clone, "apt-get", "-qq", "-y", "--no-install-recommends", "install", PACKAGE)
        run(clone, "sh", "-c", f"{PACKAGE} --version >/root/said && rm -r /usr/share/doc/less && exec chmod 700 /opt")
        with clone.mounted() as root:
            edit(root)
        with clone.mounted() as root:
            after = trees.read(root)
            assert (root / "root/said").read_text()
        expected = trees.changes(before, after)
        assert ("added", f"usr/bin/{PACKAGE}".encode()) in expected or ("added", b"bin/ed") in expected
        links = trees.relinked(before, after)
        assert {b"usr/bin/less", b"usr/bin/less.second"} >= links
        found = [(str(change.kind), change.path) for change in clone.changes()]
        assert [change for change in found if change[1] not in links] == expected
        with stopwatch(f"commit of {len(expected)} changes, {store.driver.name}"):
            committed = clone.commit("debian:apt", message="with a package")
    assert committed.manifest.layers[:-1] == image.manifest.layers
    check_layer(store, committed, expected, links)
    store.export_image(["debian:apt"], fresh_dir / "out.tar")
    (back,) = other.import_image(fresh_dir / "out.tar")
    assert back.digest == committed.digest
    trees.check_same(after, tree_of(other, "debian:apt"), f"{other.driver.name} and the clone of {store.driver.name}")
    trees.check_same(after, tree_of(store, "debian:apt"), f"the image in the same store ({store.driver.name})")


def check_layer(
    store: layerfs.Store, image: layerfs.Image, expected: list[tuple[str, bytes]], links: set[bytes]
) -> None:
    """Check that the uppermost layer names every change, and beyond them only links and the directories above."""
    layer = image.manifest.layers[-1]
    with store.blobs.open(layer.digest) as stream:
        plain = zstandard.ZstdDecompressor().stream_reader(stream).read()
    assert digest(plain) == image.config.diff_ids[-1]
    named = {(kind == "deleted", path) for kind, path in expected}
    found: set[tuple[bool, bytes]] = set()
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        for member in archive:
            above, _, name = os.fsencode(member.name).rpartition(b"/")
            gone = name.startswith(b".wh.")
            path = b"/".join(part for part in (above, name.removeprefix(b".wh.") if gone else name) if part)
            assert (gone, path) in named or member.isdir() or path in links, path
            found.add((gone, path))
    assert found >= named


def test_a_shell_runs_as_root(store: layerfs.Store, debian_layout: Path) -> None:
    with store.clone(imported(store, debian_layout).name) as clone:
        run(clone, "sh", "-c", 'test "$(id -u)" = 0 && test ! -e /etc/hostname && echo "$0" >/root/written')
        assert clone.run(["sh", "-c", "exit 7"]) == 7
        assert clone.run(["sh", "-c", "kill -TERM $$"]) == 128 + 15
        run(clone, "su", "-s", "/bin/sh", "nobody", "-c", 'test "$(id -u)" = 65534 && ! touch /root/no 2>/dev/null')
        run(clone, "sh", "-c", "mount | grep -q ' / ' && test -c /dev/null && test -r /proc/self/status")
        assert {change.path for change in clone.changes()} == {b"root", b"root/written"}

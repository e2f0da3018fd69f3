"""The service by another's client, grpcio's: errors, namespaces, lists, cancellation, restarts and stops."""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import grpc
import pytest

import layerfs
from layerfs.serve import protobuf, units
from tests.support.serving import PROGRAM, Serving
from tests.support.snapshots_client import Client


@pytest.fixture
def driver_name() -> str:
    """Give the driver that an ordinary user has, too."""
    return "copy"


@pytest.fixture
def client(serving: Serving) -> Iterator[Client]:
    made = Client(serving.socket)
    yield made
    made.close()


def key(text: str) -> bytes:
    return protobuf.text(2, text)


def test_the_errors_are_those_of_the_contract(client: Client) -> None:
    client.prepare("one")
    client.commit("base", "one")
    client.prepare("child", "base")
    client.call("View", key("look"), protobuf.text(3, "base"))
    code = grpc.StatusCode
    for verb in ("Stat", "Mounts", "Usage", "Remove"):
        assert client.fails(verb, key("none"))[0] is code.NOT_FOUND
    assert client.fails("Prepare", key("child"))[0] is code.ALREADY_EXISTS
    assert client.fails("Prepare", key("new"), protobuf.text(3, "none"))[0] is code.NOT_FOUND
    assert client.fails("Prepare", key("new"), protobuf.text(3, "child"))[0] is code.INVALID_ARGUMENT
    assert client.fails("Prepare")[0] is code.INVALID_ARGUMENT
    assert client.fails("Mounts", key("base"))[0] is code.FAILED_PRECONDITION
    assert client.fails("Commit", key("two"), protobuf.text(3, "look"))[0] is code.FAILED_PRECONDITION
    assert client.fails("Commit", key("base"), protobuf.text(3, "child"))[0] is code.ALREADY_EXISTS
    failed, words = client.fails("Remove", key("base"))
    assert (failed, "remove" in words) == (code.FAILED_PRECONDITION, True)
    mask = protobuf.message(3, protobuf.texts(1, ["parent"]))
    assert client.fails("Update", protobuf.message(2, protobuf.text(1, "base")), mask)[0] is code.INVALID_ARGUMENT
    assert client.fails("Prepare", b"\xff")[0] is code.INVALID_ARGUMENT
    assert client.fails("Vanish")[0] is code.UNIMPLEMENTED


def test_words_beyond_ascii_come_through(client: Client) -> None:
    failed, words = client.fails("Stat", key("Schlüssel 100 %\n"))
    assert failed is grpc.StatusCode.NOT_FOUND
    assert "Schlüssel 100 %" in words


def test_an_update_changes_what_its_mask_names(client: Client) -> None:
    client.prepare("one", labels={"a": "1", "b": "2"})
    info = protobuf.text(1, "one") + protobuf.texts_by_text(6, {"a": "9", "c": "3"})
    mask = protobuf.message(3, protobuf.texts(1, ["labels.a", "labels.b"]))
    answer = client.call("Update", protobuf.message(2, info), mask).message(1)
    assert answer.texts_by_text(6) == {"a": "9"}
    assert client.call("Stat", key("one")).message(1).texts_by_text(6) == {"a": "9"}


def test_namespaces_are_kept_apart(client: Client, serving: Serving) -> None:
    other, nobody = Client(serving.socket, "other"), Client(serving.socket, None)
    client.prepare("one")
    other.prepare("one")
    client.commit("base", "one")
    assert (client.keys(), other.keys(), nobody.keys()) == (["base"], ["one"], [])
    assert client.fails("Stat", key("other/one"))[0] is grpc.StatusCode.NOT_FOUND
    assert other.fails("Prepare", key("new"), protobuf.text(3, "base"))[0] is grpc.StatusCode.NOT_FOUND
    other.call("Remove", key("one"))
    assert client.keys() == ["base"]
    for made in (other, nobody):
        made.close()


def test_the_garbage_collector_of_containerd_sees_all_namespaces_of_containerd(serving: Serving) -> None:
    one, two, collector = (Client(serving.socket, name) for name in ("one", "two", None))
    one.prepare("one/1/key")
    two.prepare("two/2/key")
    assert (one.keys(), two.keys()) == (["one/1/key"], ["two/2/key"])
    assert collector.keys() == ["one/1/key", "two/2/key"]
    collector.call("Remove", key("two/2/key"))
    assert (one.keys(), two.keys()) == (["one/1/key"], [])
    for made in (one, two, collector):
        made.close()


@pytest.mark.parametrize("name", ["a/b", "../x", "x" * 77, "@", "a b"])
def test_what_is_no_namespace_is_refused(serving: Serving, name: str) -> None:
    client = Client(serving.socket, name)
    assert client.fails("Stat", key("x"))[0] is grpc.StatusCode.INVALID_ARGUMENT
    client.close()


def test_no_client_can_name_what_is_layerfs_s_own(client: Client, serving: Serving) -> None:
    with layerfs.open(serving.store, create=False) as store:
        store.snapshotter.prepare("clone/web")
        for name in ("clone/web", "../clone/web", "/clone/web"):
            assert client.fails("Remove", key(name))[0] is grpc.StatusCode.NOT_FOUND
        assert client.keys() == []
        wrong = protobuf.texts_by_text(4, {"layerfs/layer": "x"})
        assert client.fails("Prepare", key("new"), wrong)[0] is grpc.StatusCode.INVALID_ARGUMENT
        assert store.snapshotter.stat("clone/web").name == "clone/web"


def test_a_long_list_comes_whole_and_filtered(client: Client, serving: Serving) -> None:
    with layerfs.open(serving.store, create=False) as store:
        for number in range(2000):
            labels = {"number": str(number), "filling": "x" * 500}
            store.snapshotter.prepare(f"containerd@mine/key-{number:04}", labels=labels)
    assert client.keys() == [f"key-{number:04}" for number in range(2000)]
    assert client.keys('labels."number"==7', "name==key-0009") == ["key-0007", "key-0009"]
    with pytest.raises(grpc.RpcError):
        client.keys("name=~")


def test_usage_and_cleanup_answer(client: Client) -> None:
    client.prepare("one")
    client.commit("base", "one")
    assert client.call("Usage", key("base")).text(3) == ""
    client.call("Cleanup")


def test_many_calls_at_a_time_are_carried_out_once_each(serving: Serving) -> None:
    def work(worker: int) -> None:
        client = Client(serving.socket)
        for number in range(20):
            client.prepare(f"{worker}-{number}")
        client.close()

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    client = Client(serving.socket)
    assert len(client.keys()) == 160
    client.close()


def test_a_client_survives_a_restart(client: Client, serving: Serving) -> None:
    before = client.prepare("one")
    serving.stop()
    serving.start()
    after = client.call("Mounts", key("one"), timeout=60).messages(1)
    assert [mount.text(2) for mount in after] == [mount.text(2) for mount in before]


def test_a_stop_finishes_the_calls_under_way(client: Client, serving: Serving) -> None:
    (mount,) = client.prepare("one")
    for number in range(3000):
        Path(mount.text(2), f"{number}").write_bytes(b"x" * 100)
    failures: list[grpc.RpcError] = []

    def commit() -> None:
        try:
            client.commit("base", "one")
            client.prepare("copy", "base")
        except grpc.RpcError as error:
            failures.append(error)

    thread = threading.Thread(target=commit)
    thread.start()
    time.sleep(0.02)
    serving.stop()
    serving.start()
    thread.join()
    assert client.keys() == ["base", "copy"] if not failures else ["base"]


def test_a_socket_that_was_left_is_taken_over_and_one_in_use_is_not(serving: Serving, fresh_dir: Path) -> None:
    serving.process.kill()
    serving.process.wait()
    assert serving.socket.is_socket()
    serving.start()
    command = [*PROGRAM, "--store", str(fresh_dir / "other"), "--backend", "copy", "serve"]
    second = subprocess.run([*command, "--socket", str(serving.socket)], capture_output=True, text=True, check=False)
    assert (second.returncode, "serves" in second.stderr) == (4, True)
    (fresh_dir / "file").touch()
    third = subprocess.run([*command, "--socket", str(fresh_dir / "file")], capture_output=True, text=True, check=False)
    assert (third.returncode, "is no socket" in third.stderr) == (4, True)
    assert serving.socket.stat().st_mode & 0o777 == 0o600


def test_systemd_s_socket_is_served_and_stays(fresh_dir: Path) -> None:
    place = fresh_dir / "activated.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        listener.listen()
        client = Client(place)  # it waits: nobody serves yet
        command = [*PROGRAM, "-q", "--store", str(fresh_dir / "store"), "--backend", "copy", "serve"]
        shell = ["sh", "-c", 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@" 3<&0 0</dev/null', "sh", *command]
        for name in ("one", "two"):
            process = subprocess.Popen(shell, stdin=listener.fileno())
            client.prepare(name)
            process.send_signal(signal.SIGTERM)
            assert process.wait(30) == 0
            assert place.is_socket()
        client.close()


def test_calls_are_in_the_metrics(fresh_dir: Path) -> None:
    place, file = fresh_dir / "layerfs.sock", fresh_dir / "layerfs.prom"
    words = ["-q", "--store", str(fresh_dir / "store"), "--backend", "copy", "serve", "--socket", str(place)]
    process = subprocess.Popen([*PROGRAM, *words, "--metrics", str(file)])
    try:
        while not file.exists():
            assert process.poll() is None
        with closing(Client(place)) as client:
            client.prepare("one")
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    text = file.read_text()
    assert 'layerfs_serve_calls_total{method="Prepare",status="OK"} 1\n' in text
    assert 'layerfs_snapshots{kind="active"} 1\n' in text
    assert text.endswith("# EOF\n")


def test_the_units_name_this_very_call(fresh_dir: Path) -> None:
    base = [*PROGRAM, "--store", str(fresh_dir / "100% of it"), "--backend", "copy", "serve"]
    printed = {
        kind: subprocess.run([*base, "--print", kind], capture_output=True, text=True, check=True).stdout
        for kind in ("service", "socket", "containerd")
    }
    assert f'--store "{fresh_dir}/100%% of it" --backend copy serve --socket {units.SOCKET}' in printed["service"]
    assert f"ListenStream={units.SOCKET}" in printed["socket"]
    assert f'address = "{units.SOCKET}"' in printed["containerd"]
    assert not (fresh_dir / "100% of it").exists()
    counted = subprocess.run(
        [*base, "--metrics", "m.prom", "--print", "service"], capture_output=True, text=True, check=True
    )
    assert f"--metrics {Path.cwd()}/m.prom" in counted.stdout

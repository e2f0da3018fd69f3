"""User namespaces of ordinary users, entered for real in children of the tests."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from layerfs.errors import FailedPrecondition, LayerfsError, OperationFailed, Unsupported
from layerfs.kernel import mountinfo, syscalls, userns
from layerfs.kernel.children import attempt
from layerfs.kernel.mounting import Way, mounted, users
from layerfs.kernel.userns import IdMap, IdRange
from tests.kernel.stacks import make_stack, places
from tests.support.rootless import UID, Rootless

GRANTED = 100000


def test_where_the_tests_run() -> None:
    assert userns.is_initial() is (userns.id_map().users == (IdRange(0, 0, (1 << 32) - 1),))


def test_a_process_with_threads_cannot_enter() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        with pytest.raises(FailedPrecondition, match="threads"):
            userns.enter()
    finally:
        stop.set()
        thread.join()


@pytest.mark.rootless
def test_it_can_be_entered(run_rootless: Rootless) -> None:
    run_rootless(userns.can_enter)


def _enter() -> tuple[int, int, bool, IdMap, set[str]]:
    before = places()
    userns.enter()
    return os.geteuid(), os.getegid(), userns.is_initial(), userns.id_map(), places() ^ before


@pytest.mark.rootless
def test_inside_one_is_root(run_rootless: Rootless) -> None:
    user, group, initial, ids, changed = run_rootless(_enter)
    assert (user, group, initial, changed) == (0, 0, False, set())
    assert ids.users[0].inside == 0
    assert ids.users[0].count == 1


def _overlay(base: Path, way: Way | None) -> tuple[set[str], set[str]]:
    userns.enter()
    stack = make_stack(base, 5)
    with mounted(stack.writable(userxattr=True), stack.target, way=way) as root:
        names = set(os.listdir(root))
        (root / "file1").unlink()
        (root / "new").write_text("new")
        (root / "directory").mkdir()
        assert [point.path for point in users(stack.writable())] == [root]
        assert "userxattr" in mountinfo.at(root)[0].super_options
    assert (stack.upper / "file1").is_char_device()
    assert (stack.upper / "new").read_text() == "new"
    return names, {*stack.names, "top"}


@pytest.mark.rootless
@pytest.mark.parametrize("way", [None, *Way])
def test_an_overlay_inside(run_rootless: Rootless, rootless_dir: Path, way: Way | None) -> None:
    names, expected = run_rootless(_overlay, rootless_dir, way)
    assert names == expected
    assert all(str(rootless_dir) not in place for place in places())


def _opaque(base: Path) -> bytes:
    userns.enter()
    stack = make_stack(base, 2)
    (stack.lowers[1] / "directory").mkdir()
    with mounted(stack.writable(userxattr=True), stack.target) as root:
        (root / "directory").rmdir()
        (root / "directory").mkdir()
    return os.getxattr(stack.upper / "directory", "user.overlay.opaque")


@pytest.mark.rootless
def test_opaque_directories_persist_inside(run_rootless: Rootless, rootless_dir: Path) -> None:
    assert run_rootless(_opaque, rootless_dir) == b"y"


def _shared(base: Path) -> set[str]:
    userns.enter()
    stack = make_stack(base, 40)
    with mounted(stack.shared(base / "shared" / "image"), stack.target) as root:
        return set(os.listdir(root)) ^ stack.names


@pytest.mark.rootless
def test_a_shared_mount_inside(run_rootless: Rootless, rootless_dir: Path) -> None:
    assert run_rootless(_shared, rootless_dir) == {"top"}


def _with_subordinate_ids(base: Path) -> None:
    """Grant ids to "nobody" in a mount namespace of this process's own, then become that user and enter."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(None, b"/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    granted = base / "granted"
    granted.write_text(f"somebody:1:2\nnobody:{GRANTED}:65536\n{UID}:{GRANTED + 70000}:10\nnobody:bad:1\n")
    granted.chmod(0o644)
    for table in (b"/etc/subuid", b"/etc/subgid"):
        syscalls.mount(os.fsencode(granted), table, None, syscalls.MS_BIND)
    os.setgroups([])
    os.setresgid(UID, UID, UID)
    os.setresuid(UID, UID, UID)
    userns.enter()
    expected = (IdRange(0, UID, 1), IdRange(1, GRANTED, 65536), IdRange(65537, GRANTED + 70000, 10))
    if userns.id_map() != IdMap(expected, expected) or userns.id_map().single:
        raise OperationFailed(f"mapped {userns.id_map()}")
    os.chown(_touched(base / "file"), 1000, 1000)


def _touched(path: Path) -> Path:
    path.touch()
    return path


@pytest.mark.root
@pytest.mark.skipif(not Path("/etc/subuid").exists(), reason="no subordinate ids here: apt-get install uidmap")
def test_subordinate_ids_are_mapped(rootless_dir: Path) -> None:
    os.chmod(rootless_dir.parent, 0o755)  # noqa: S103  the way to the directory of uid 65534
    attempt(lambda: _with_subordinate_ids(rootless_dir), "map subordinate ids")
    assert (rootless_dir / "file").stat().st_uid == GRANTED + 999


def _forbidden() -> None:
    """Be root of a user namespace that allows no further ones, as user.max_user_namespaces=0 does on a host."""
    userns.enter()
    Path("/proc/sys/user/max_user_namespaces").write_text("0", encoding="utf-8")
    userns.can_enter()


def _hint_of(body: Callable[[], None]) -> str:
    """Return the hint: pickling an exception to the parent would drop it."""
    with pytest.raises(Unsupported) as caught:
        body()
    return caught.value.hint or ""


@pytest.mark.rootless
def test_a_host_that_forbids_it_is_explained(run_rootless: Rootless) -> None:
    assert "max_user_namespaces" in run_rootless(_hint_of, _forbidden)


def test_a_childs_error_arrives_whole() -> None:
    def body() -> None:
        raise Unsupported("no", hint="yes")

    with pytest.raises(Unsupported, match="no") as caught:
        attempt(body, "try")
    assert caught.value.hint == "yes"


def test_a_childs_system_error_is_translated() -> None:
    with pytest.raises(LayerfsError, match="cannot look"):
        attempt(lambda: os.close(os.open("/nowhere", os.O_RDONLY)), "look")


@pytest.mark.parametrize(
    ("body", "words"), [(lambda: os.kill(os.getpid(), 9), "SIGKILL"), (lambda: os._exit(3), "status 3")]
)
def test_a_child_that_dies_is_told(body: Callable[[], None], words: str) -> None:
    with pytest.raises(OperationFailed, match=words):
        attempt(body, "try")


def test_a_mistake_in_a_child_is_shown(capfd: pytest.CaptureFixture[str]) -> None:
    def body() -> None:
        raise ValueError("a mistake")

    with pytest.raises(OperationFailed, match="status 1"):
        attempt(body, "try")
    assert "ValueError: a mistake" in capfd.readouterr().err

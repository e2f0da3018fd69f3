"""Which drivers are here, each tried for real on a directory that suits it, and a btrfs to try that one on."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from layerfs import drivers
from layerfs.errors import LayerfsError
from tests.guest import machine
from tests.support import leftovers, requirements, rootless

BTRFS_SIZE = 4 << 30
"""Bytes of the sparse image: btrfs on less than some 256 MiB behaves differently (mixed block groups)."""


POOL_SIZE = 2 << 30


@dataclass(frozen=True, slots=True)
class Presence:
    """A driver's name, and why it is not here; None where it is."""

    name: str
    reason: str | None


def names() -> tuple[str, ...]:
    """Return the names of all drivers installed, of whomever."""
    return drivers.names()


def directory_with_xattrs() -> Path:
    """Return where the tests keep their data: memory where it takes user.* xattrs (tmpfs since Linux 6.6).

    Benchmarks and mass deletions on a disk with discard slow down everything after them; memory does not.
    """
    for root in (Path("/dev/shm"), Path("/var/tmp")):
        with contextlib.suppress(OSError), tempfile.NamedTemporaryFile(dir=root) as file:
            os.setxattr(file.name, "user.layerfs", b"")
            return root
    return Path(tempfile.gettempdir())


@contextlib.contextmanager
def workspace(what: str) -> Iterator[Path]:
    """Make a directory that later runs know as ours; at the end remove it, and fail on what is mounted there."""
    prefix = f"{leftovers.PREFIX}{os.getpid()}-{what}-"
    path = Path(tempfile.mkdtemp(prefix=prefix, dir=directory_with_xattrs()))
    path.chmod(0o755)
    try:
        yield path
    finally:
        left = leftovers.find([path])
        leftovers.clear(left)
        if not leftovers.find([path]):
            leftovers.remove(path)
    if left:
        raise AssertionError("left behind: " + "; ".join(left.lines()))


def btrfs() -> contextlib.AbstractContextManager[Path]:
    """Mount a fresh btrfs from a file."""
    return file_system("btrfs")


@contextlib.contextmanager
def file_system(kind: str, *, features: Sequence[str] = (), options: str = "") -> Iterator[Path]:
    """Mount a fresh file system from a file, with the tools and not with the code under test; unmount it at the end.

    ``features`` are arguments of its mkfs, ``options`` those of the mount. Raise ``OSError`` or ``CalledProcessError``
    where the host does not allow it.
    """
    with workspace(kind) as path:
        image, target = path / f"{kind}.img", path / "mnt"
        target.mkdir()
        with image.open("wb") as file:
            file.truncate(BTRFS_SIZE)
        _run(f"mkfs.{kind}", "-q", *features, image)
        _run("mount", "-o", ",".join(filter(None, ("loop", options))), image, target)
        try:
            yield target
        finally:
            _unmount(target)
            _await_release(path)


def _unmount(target: Path) -> None:
    """Unmount, once nobody holds files there any more: a process that is ending, or a store that nobody closed."""
    for _ in range(100):
        gc.collect()
        if subprocess.run(["umount", target], check=False, capture_output=True).returncode == 0:
            return
        time.sleep(0.1)
    raise AssertionError(f"{target} is in use: {'; '.join(_holders(target)) or 'by whom does not show'}")


def _holders(target: Path) -> Iterator[str]:
    """Yield the files below a directory that processes have open, and what is mounted there."""
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if str(place := link.readlink()).startswith(f"{target}/") or place == target:
                yield f"process {link.parts[2]} has {place}"
    yield from leftovers.find([target]).lines()


def _await_release(path: Path) -> None:
    """Wait until a loop device is gone: another's mount namespace may have a copy of the mount for a while."""
    for _ in range(100):
        if not leftovers.find([path]):
            return
        time.sleep(0.1)


@contextlib.contextmanager
def zfs() -> Iterator[Path]:
    """Make a ZFS pool on a file and mount a file system of it; export it at the end, with all that is in it.

    Raise ``OSError`` or ``CalledProcessError`` where the host does not allow it.
    """
    with workspace("zfs") as path:
        image, target, pool = path / "zfs.img", path / "mnt", f"layerfs-test-{os.getpid()}"
        target.mkdir()
        with image.open("wb") as file:
            file.truncate(POOL_SIZE)
        _run("zpool", "create", "-o", "cachefile=none", "-O", "mountpoint=legacy", "-O", "atime=off", pool, image)
        try:
            _run("mount", "-t", "zfs", pool, target)
            yield target
        finally:
            _run("umount", target)
            _run("zpool", "destroy", "-f", pool)


def presence() -> tuple[Presence, ...]:
    """Try every driver on a directory that suits it, and tell why one is not here; in the guest those tested there."""
    tried = [name for name in names() if name in requirements.IN_GUEST or not machine.inside()]
    with workspace("probe") as path:
        return tuple(Presence(name, _reason(name, path / name)) for name in tried)


def table(found: tuple[Presence, ...], *, guest: bool) -> list[str]:
    """Return a line for each driver and tier: here, or why not; with ``guest`` some are in that, or it is why not."""
    root = Presence("root", None if os.geteuid() == 0 else "not run by root")
    lines = (*found, root, Presence("rootless", rootless.missing()))
    there = requirements.IN_GUEST if guest and not machine.inside() else ()
    return [f"{line.name:12} {_in_guest() if line.name in there else _here(line.reason)}" for line in lines]


def _in_guest() -> str:
    return "in the guest" if (reason := machine.missing()) is None else f"NOT HERE: {reason}"


def _here(reason: str | None) -> str:
    return "here" if reason is None else f"NOT HERE: {reason}"


def _reason(name: str, path: Path) -> str | None:
    try:
        with contextlib.ExitStack() as stack:
            root = path
            if name == "btrfs":
                root = stack.enter_context(btrfs()) / name
            elif name == "zfs" and os.path.exists("/dev/zfs"):
                root = stack.enter_context(zfs()) / name
            root.mkdir()
            drivers.open_driver(name, root).close()
    except subprocess.CalledProcessError as error:
        return f"no {name} can be mounted here: {(error.stderr or b'').decode().strip()}"
    except LayerfsError as error:
        return f"{error}" + (f" ({error.hint})" if error.hint else "")
    except Exception as error:  # noqa: BLE001  a driver that breaks is not here; its own tests show the trace
        return f"{type(error).__name__}: {error}"
    return None


def _run(*arguments: str | Path) -> None:
    environment = {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"}
    subprocess.run(arguments, check=True, capture_output=True, env=environment)


if __name__ == "__main__":
    print("\n".join(table(presence(), guest="guest" in requirements.required())))  # noqa: T201  scripts/test runs it

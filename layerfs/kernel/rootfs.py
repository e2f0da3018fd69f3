"""Furnish a root directory for a command: /dev, /proc, /sys and name resolution, leaving no trace in it.

Everything is mounted; a place that the root lacks is made before and removed after, and the directory that holds it
gets its times back, so that a commit finds only what the command did.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Self

from layerfs.kernel import syscalls
from layerfs.kernel.descriptors import opened

_NODES = ("null", "zero", "full", "random", "urandom", "tty")
_LINKS = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
)
_RESOLV_CONF = "/etc/resolv.conf"
_NO_PROGRAMS = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
_NO_PROGRAMS_ATTRIBUTES = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOEXEC
_NO_SETUID = syscalls.MS_NOSUID | syscalls.MS_NOEXEC


class HostTrees:
    """Copies, attached nowhere yet, of the host's mounts that the root shall show; taken before the root is entered.

    Their places in the root are looked up after that, so a symbolic link in it leads nowhere else.
    """

    def __init__(self) -> None:
        self._trees: dict[str, int] = {}

    def __enter__(self) -> Self:
        for node in _NODES:
            self._take(f"/dev/{node}", f"/dev/{node}")
        if os.isatty(0):
            with suppress(OSError):
                self._take("/dev/console", os.ttyname(0))
        self._new_proc()
        self._take("/dev/pts", "/dev/pts")
        self._take("/sys", "/sys", read_only=True)
        self._take(_RESOLV_CONF, _RESOLV_CONF, read_only=True)
        return self

    def _take(self, name: str, source: str, *, read_only: bool = False) -> None:
        """Copy a mount; what the host does not have, or cannot show read-only, the root does not get."""
        with suppress(OSError):
            tree = syscalls.open_tree(os.fsencode(source), recursive=True)
            self._trees[name] = tree
            if read_only:
                try:
                    syscalls.mount_setattr(tree, attr_set=syscalls.MOUNT_ATTR_RDONLY, recursive=True)
                except OSError:
                    os.close(self._trees.pop(name))

    def _new_proc(self) -> None:
        """Make the /proc of this PID namespace, or show the host's where its own is partly hidden (EPERM).

        It is made before the root is entered: in a user namespace the kernel wants to see a whole one beside it.
        """
        try:
            context = syscalls.fsopen(b"proc")
        except OSError:
            return
        with opened(context):
            try:
                syscalls.fsconfig_create(context)
                self._trees["/proc"] = syscalls.fsmount(context, _NO_PROGRAMS_ATTRIBUTES)
            except PermissionError:
                self._take("/proc", "/proc")

    def __contains__(self, name: str) -> bool:
        return name in self._trees

    def attach(self, name: str, place: str) -> None:
        """Attach the copy called ``name`` at ``place``."""
        syscalls.move_mount(self._trees[name], os.fsencode(place))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for tree in self._trees.values():
            os.close(tree)


class _Places:
    """The places that were made for mounts, to be removed again in reverse."""

    def __init__(self) -> None:
        self._made: list[tuple[str, os.stat_result, int]] = []
        self._mounted: list[str] = []

    def need(self, path: str, *, directory: bool) -> str:
        """Make sure that ``path`` exists, its parents too; return where it really is, or "" if it takes no mount."""
        real = os.path.realpath(path)
        try:
            fits = stat.S_ISDIR(os.stat(real).st_mode) is directory
        except OSError:
            fits = self._make(real, directory=directory)
        return real if fits else ""

    def _make(self, real: str, *, directory: bool) -> bool:
        above = os.path.dirname(real)
        if not os.path.isdir(above) and not self._make(above, directory=True):
            return False
        try:
            status = os.stat(above)
            if directory:
                os.mkdir(real, 0o755)
            else:
                os.close(os.open(real, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
        except OSError:  # a read-only root, or a file in the way of a directory
            return False
        self._made.append((real, status, os.stat(above).st_mtime_ns))
        return True

    def mounted(self, path: str) -> None:
        """Remember a mount, for it hides the place that is to be removed."""
        self._mounted.append(path)

    def clear(self) -> None:
        """Unmount, and remove what was made, unless the command put something there."""
        for path in reversed(self._mounted):
            with suppress(OSError):
                syscalls.umount(os.fsencode(path), syscalls.MNT_DETACH)
        for path, before, made in reversed(self._made):
            with suppress(OSError):
                _remove(path, before, made)


def _remove(path: str, before: os.stat_result, made: int) -> None:
    """Remove what was made at the time ``made``, when the directory that holds it was as in ``before``."""
    status = os.lstat(path)
    directory = os.path.dirname(path)
    ours = os.stat(directory).st_mtime_ns == made  # another time is that of a change by the command, and stays
    if stat.S_ISDIR(status.st_mode):
        os.rmdir(path)
    elif status.st_size == 0:
        os.unlink(path)
    if ours:
        os.utime(directory, ns=(before.st_atime_ns, before.st_mtime_ns))


@contextmanager
def furnished(trees: HostTrees) -> Iterator[None]:
    """Mount what a command expects in the present root, "/", for the time of the block."""
    places = _Places()
    mask = os.umask(0)
    try:
        _attach(trees, places, "/proc", directory=True)
        _attach(trees, places, "/sys", directory=True)
        _dev(trees, places)
        _attach(trees, places, _RESOLV_CONF, directory=False)
        os.umask(mask)
        yield
    finally:
        os.umask(mask)
        places.clear()


def _attach(trees: HostTrees, places: _Places, name: str, *, directory: bool) -> None:
    if name in trees and (place := places.need(name, directory=directory)):
        trees.attach(name, place)
        places.mounted(place)


def _dev(trees: HostTrees, places: _Places) -> None:
    place = places.need("/dev", directory=True)
    if not place:
        return
    syscalls.mount(b"tmpfs", os.fsencode(place), b"tmpfs", _NO_SETUID, b"mode=755")
    places.mounted(place)
    for node in (*_NODES, "console"):
        if f"/dev/{node}" in trees:
            os.close(os.open(f"/dev/{node}", os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
            trees.attach(f"/dev/{node}", f"{place}/{node}")
    for name, target in _LINKS:
        os.symlink(target, f"/dev/{name}")
    os.mkdir("/dev/shm", 0o1777)  # noqa: S108  where POSIX shared memory is
    syscalls.mount(b"tmpfs", b"/dev/shm", b"tmpfs", _NO_PROGRAMS, b"mode=1777")
    os.mkdir("/dev/pts", 0o755)
    _terminals(trees)


def _terminals(trees: HostTrees) -> None:
    """Mount terminals of the root's own; group 5 (tty) is not mapped in every user namespace."""
    for group in (b",gid=5", b""):
        with suppress(OSError):
            data = b"newinstance,ptmxmode=0666,mode=0620" + group
            syscalls.mount(b"devpts", b"/dev/pts", b"devpts", _NO_SETUID, data)
            return
    if "/dev/pts" in trees:
        trees.attach("/dev/pts", os.path.realpath("/dev/pts"))

"""Run a command in a root of its own, with the host's network and nothing else of a container.

Four processes: the *caller* waits; its child, the *keeper*, owns the new mount and PID namespaces; its child, the
*init*, builds the root and reaps; the last one is the command. When the command ends, the kernel kills whatever it left
running, and every mount goes with the namespace: also when the caller is killed, for each process dies with the one
before it.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from layerfs.contract import Mount
from layerfs.errors import InvalidArgument, LayerfsError, NotFound, os_error
from layerfs.kernel import mounting, syscalls, temporary, userns
from layerfs.kernel.children import end_with, exit_status, fork, raise_reported, report
from layerfs.kernel.relay import FROM_TERMINAL, RELAYED, signals_left_to_child
from layerfs.kernel.rootfs import HostTrees, furnished

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where programs are looked for if nobody says: that of Debian's root."""
_WHAT = "run a command in the clone"


def run_chroot(root: Path | Sequence[Mount], argv: Sequence[str], env: Mapping[str, str]) -> int:
    """Run ``argv`` with ``root`` as its root directory and return its exit status, or 128+n for signal n.

    ``root`` is a directory, or the mounts that show one; these are seen by the command only, and so are /proc, /sys
    (read-only), a small /dev and the host's /etc/resolv.conf. ``env`` is the whole environment; a program without a
    slash is looked up by its ``PATH``, in the root. The terminal stays the caller's. The command of an ordinary user is
    root of a user namespace of its own. Raise `NotFound` where there is no such program, and `LayerfsError` where the
    root cannot be set up.
    """
    if not argv:
        raise InvalidArgument("no command to run")
    mounts = [Mount("rbind", str(root), ("rbind",))] if isinstance(root, Path) else list(root)
    place = temporary.directory("layerfs-root-")
    try:
        with _terminal_kept():
            return _run(mounts, place, argv, env)
    finally:
        temporary.remove(place)


def _run(mounts: Sequence[Mount], place: Path, argv: Sequence[str], env: Mapping[str, str]) -> int:
    reader, writer = os.pipe()
    with signals_left_to_child() as relay_to:
        keeper = fork()
        if keeper == 0:
            os.close(reader)
            end_with(lambda: _keep(mounts, place, argv, env, writer), writer, _WHAT)
        relay_to(keeper)
        os.close(writer)
        try:
            raise_reported(reader)
        finally:
            os.close(reader)
            waited = os.waitpid(keeper, 0)[1]
    return exit_status(waited)


# -- the caller --------------------------------------------------------------------------------------------------------


@contextmanager
def _terminal_kept() -> Iterator[None]:
    """Take the terminal back at the end: a shell that was killed leaves it to a process group that is gone."""
    try:
        foreground = os.tcgetpgrp(0) if os.isatty(0) else 0
    except OSError:  # a terminal, but not the controlling one
        foreground = 0
    try:
        yield
    finally:
        if foreground == os.getpgrp() and threading.current_thread() is threading.main_thread():
            before = signal.signal(signal.SIGTTOU, signal.SIG_IGN)
            with suppress(OSError):
                os.tcsetpgrp(0, foreground)
            signal.signal(signal.SIGTTOU, signal.SIG_DFL if before is None else before)


# -- the keeper and the init -------------------------------------------------------------------------------------------


def _keep(mounts: Sequence[Mount], place: Path, argv: Sequence[str], env: Mapping[str, str], writer: int) -> int:
    _die_with_parent(writer)
    if os.geteuid() != 0:
        userns.enter()
    syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWPID)
    syscalls.mount(None, b"/", None, syscalls.MS_REC | syscalls.MS_SLAVE)
    with signals_left_to_child() as relay_to:
        init = fork()
        if init == 0:
            end_with(lambda: _init(mounts, place, argv, env, writer), writer, _WHAT)
        relay_to(init)
        os.close(writer)
        return exit_status(os.waitpid(init, 0)[1])


def _die_with_parent(writer: int) -> None:
    """Die when the parent does, also when it did so a moment ago: then nobody reads the pipe any more."""
    syscalls.die_with_parent(signal.SIGKILL)
    poll = select.poll()
    poll.register(writer, 0)
    if poll.poll(0):
        os._exit(1)


def _init(mounts: Sequence[Mount], place: Path, argv: Sequence[str], env: Mapping[str, str], writer: int) -> int:
    _die_with_parent(writer)
    with HostTrees() as trees:
        mounting.mount(mounts, place)
        _enter(place)
        with furnished(trees), signals_left_to_child() as relay_to:
            command = fork()
            if command == 0:
                end_with(lambda: _execute(argv, env, writer), writer, _WHAT)
            relay_to(command)
            os.close(writer)
            status = _reap(command)
            with suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)  # everybody in this PID namespace but its init
            return status


def _enter(place: Path) -> None:
    """Make ``place`` the root: pivot_root(2), section "pivot_root(".", ".")"."""
    os.chdir(place)
    syscalls.pivot_root(b".", b".")
    syscalls.umount(b".", syscalls.MNT_DETACH)
    os.chdir("/")


def _reap(command: int) -> int:
    """Wait for the command, and for every process that lost its parent meanwhile."""
    while True:
        pid, waited = os.wait()
        if pid == command:
            return exit_status(waited)


def _execute(argv: Sequence[str], env: Mapping[str, str], writer: int) -> int:
    for number in (*FROM_TERMINAL, *RELAYED, signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)  # Python ignores the last two
    try:
        os.execvpe(argv[0], list(argv), {"PATH": PATH, **env})  # noqa: S606  a program of the clone, without a shell
    except OSError as error:
        report(writer, _not_executed(argv[0], error))
    return 127


def _not_executed(program: str, error: OSError) -> LayerfsError:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return NotFound(f"the clone has no program {program!r}", hint="name one by its path, or set PATH by --env")
    return os_error(f"run {program!r} in the clone", error)

"""The process that owns a union: one for each mount, detached from who started it, ended by the unmount.

It says whether the mount works before the one who started it goes on. SIGTERM and SIGINT unmount cleanly; where the
mount is busy they take it out of sight, and the process serves until its last user has finished. Killed, it leaves a
stale mount (see `layerfs_fuse.mounting`), and an upper directory that holds all that fsync(2) confirmed and can be
mounted again.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import NoReturn

from layerfs.errors import Busy, LayerfsError, OperationFailed
from layerfs.kernel import children
from layerfs_fuse import mounting
from layerfs_fuse.ids import AS_THEY_ARE, IdShift
from layerfs_fuse.mounting import Attachment
from layerfs_fuse.operations import handlers
from layerfs_fuse.operations.counted import files_of
from layerfs_fuse.operations.patience import Patience
from layerfs_fuse.server import Channel
from layerfs_fuse.session import Wishes
from layerfs_fuse.union import Union
from layerfs_fuse.union.counted import CountedUnion

_LOG = logging.getLogger(__name__)

Ready = Callable[[], None]
"""Called by the daemon when what it was started for works."""

_SPARE_DESCRIPTORS = 4
"""One in so many descriptors of the process's limit keeps a file open that nobody is known to use."""
_KEPT_FILES = 4096


# -- serving -----------------------------------------------------------------------------------------------------------


def serve(
    union: Union,
    target: Path,
    attachment: Attachment,
    wishes: Wishes,
    *,
    ready: Ready | None = None,
    volatile: bool = False,
    users: IdShift = AS_THEY_ARE,
    groups: IdShift = AS_THEY_ARE,
) -> None:
    """Mount ``union`` at ``target``, call ``ready``, answer until it is unmounted; then sync it unless ``volatile``.

    This process becomes the server: its umask and its limit of open files are changed, and SIGTERM and SIGINT unmount.
    It must be in no thread but the main one. Raise `LayerfsError` where it cannot be mounted.
    """
    os.umask(0)  # modes and umasks are the union's to apply
    limit = _raise_descriptor_limit()
    target = target.resolve()
    channel = Channel(mounting.attach(target, attachment))
    try:
        session = channel.negotiate(wishes)
        if session is None:
            raise OperationFailed(f"the mount at {target} was taken away while it was made")
        files = files_of(union, channel, session, limit=limit, volatile=volatile)
        table = handlers(union, files, channel, session, users=users, groups=groups)
        if isinstance(union, CountedUnion):
            table = Patience(union, channel).handlers(table)
        _unmount_when_told(target)
        way = "passthrough" if session.passthrough else "no open"
        _LOG.info("serving %s, %s, FUSE 7.%d", target, way, session.minor)
        if ready is not None:
            ready()
        # What is there now stays to the end: the collector need not look through it again and again.
        gc.freeze()
        channel.serve(table)
        files.close()
    finally:
        channel.close()
    if not volatile:
        union.sync()
    _LOG.info("unmounted %s", target)


def _raise_descriptor_limit() -> int:
    """Take all descriptors that the hard limit allows; return how many files may stay open for nobody."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return min(hard // _SPARE_DESCRIPTORS, _KEPT_FILES)


def _unmount_when_told(target: Path) -> None:
    """Unmount on SIGTERM and SIGINT, in a thread of its own: unmounting asks the loop, which goes on meanwhile."""
    begun = threading.Event()

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if not begun.is_set():
            begun.set()
            _LOG.info("%s: unmounting %s", signal.Signals(number).name, target)
            threading.Thread(target=_unmount, args=(target, begun), daemon=True).start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)


def _unmount(target: Path, begun: threading.Event) -> None:
    try:
        try:
            mounting.detach(target)
        except Busy as busy:
            _LOG.warning("%s; %s; it is out of sight and served to its last user", busy, busy.hint)
            mounting.detach(target, lazy=True)
    except LayerfsError:
        _LOG.exception("cannot unmount %s", target)
        begun.clear()  # the next signal tries again


# -- detaching ---------------------------------------------------------------------------------------------------------


def start(body: Callable[[Ready], None], what: str, *, log: Path | None = None, keep: Collection[int] = ()) -> int:
    """Run ``body`` in a process of its own session with no parent, and return its pid once it calls what it is given.

    ``what`` says what it is for, in errors ("serve /mnt"). Its output and log go to ``log``, appended to. It starts
    with the descriptors of ``keep`` and no others, in the root directory; but what the caller has open stays open until
    it is ready, so that a lock of the caller's holds even if the caller is killed: nobody finds a place free that is
    about to be mounted. What ``body`` raises before it is ready is raised here.
    """
    failed, report = os.pipe()
    told, tell = os.pipe()
    child = children.fork()
    if child == 0:
        _detach(partial(_run, body, what, log, frozenset((report, tell, *keep)), report, tell))
    os.close(report)
    os.close(tell)
    try:
        os.waitpid(child, 0)
        # The daemon closes both when it is ready or ends.
        children.raise_reported(failed)
        pid = os.read(told, 32)
    finally:
        os.close(failed)
        os.close(told)
    if not pid:
        where = f"; see {log}" if log is not None else ""
        raise OperationFailed(f"cannot {what}: the process ended without a word{where}")
    return int(pid)


def _detach(run: Callable[[], NoReturn]) -> NoReturn:
    """Leave the session of the caller, and have a child that the caller need not wait for."""
    try:
        os.setsid()
        if children.fork() == 0:
            run()
    finally:
        os._exit(0)


def _run(
    body: Callable[[Ready], None], what: str, log: Path | None, keep: frozenset[int], report: int, tell: int
) -> NoReturn:
    held = _duplicates()

    def ready() -> None:
        os.write(tell, b"%d" % os.getpid())
        # Closing them is what the caller waits for. The number must not become that of a file of somebody's, for an
        # error that comes later is still reported there.
        os.close(tell)
        os.dup2(0, report, inheritable=False)
        for fd in held:
            os.close(fd)

    def main() -> int:
        _leave_everything(log, keep.union(held))
        try:
            body(ready)
        except LayerfsError as error:
            _LOG.error("cannot %s: %s", what, error)
            raise
        except OSError:
            _LOG.exception("cannot %s", what)
            raise
        except Exception as error:  # a mistake of ours or of a binding's: whoever waits shall hear of it
            _LOG.exception("cannot %s", what)
            raise OperationFailed(f"cannot {what}: {error!r}") from error
        return 0

    children.end_with(main, report, what)


def _duplicates() -> list[int]:
    """Return a second descriptor of each file that is open: one whose number nothing else in the process knows."""
    duplicates = []
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # that of the directory itself is closed
            duplicates.append(os.dup(int(name)))
    return duplicates


def _leave_everything(log: Path | None, keep: frozenset[int]) -> None:
    """Keep nothing of the process that was forked: directory, signals, descriptors, handlers of its log."""
    out = os.open(os.devnull if log is None else log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for standard, fd in enumerate((nothing, out, out)):
        os.dup2(fd, standard)
    first = 3
    for fd in sorted(keep):
        os.closerange(first, fd)
        first = fd + 1
    os.closerange(first, os.sysconf("SC_OPEN_MAX"))
    os.chdir("/")
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # Those of the caller may be no files, or hold text that is theirs to write.
    sys.stdout = sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)  # noqa: SIM115  for ever
    faulthandler.enable()
    for handler in logging.root.handlers[:]:
        logging.root.removeHandler(handler)  # and not closed: its descriptor is gone, or is now another's
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s")

"""Run a Python function as an ordinary user: in a child process that, when root runs the tests, drops to uid 65534."""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NoReturn, ParamSpec, Protocol, TypeVar

from layerfs.kernel.children import fork

UID = GID = 65534
"""nobody and nogroup on Debian and Ubuntu."""

_LIMIT = 480
"""Seconds after which the kernel ends the child: before the whole run is stopped (faulthandler_timeout)."""
_PR_SET_DUMPABLE = 4  # linux/prctl.h
_SETPRIV = ("setpriv", f"--reuid={UID}", f"--regid={GID}", "--clear-groups", "--")

P = ParamSpec("P")
T = TypeVar("T")


class Rootless(Protocol):
    """What the fixture `run_rootless` gives."""

    def __call__(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the function as an ordinary user, in a child process, and return its answer."""
        ...


class ChildFailed(AssertionError):
    """Report that the child ended without an answer, or with an exception that cannot be carried over."""


@cache
def missing() -> str | None:
    """Return why there can be no rootless test here, found out by trying; None where there can."""
    drop = _SETPRIV if os.geteuid() == 0 else ()
    repository = Path(__file__).parents[2]
    for needed in (repository / "pyproject.toml", Path(os.__file__)):
        if subprocess.run([*drop, "test", "-r", needed], check=False, capture_output=True).returncode:
            return f"uid {UID} cannot read {needed}: make .venv with a Python, and at a place, that everybody can reach"
    tried = subprocess.run(
        [*drop, "unshare", "--user", "--map-root-user", "--mount", "true"], check=False, capture_output=True, text=True
    )
    return f"no user namespaces for ordinary users: {tried.stderr.strip()}" if tried.returncode else None


def run_rootless(home: Path, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call ``function`` in a forked child without root and return its answer; what it raises is raised here.

    Answer and exception are pickled. ``home`` becomes its HOME and current directory. The child has one thread, so it
    may enter a user namespace.
    """
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Python 3.12 warns of a fork beside other threads; the child calls nothing that could wait for their locks.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = fork()
    if child == 0:
        os.close(reader)
        _answer(writer, home, lambda: function(*args, **kwargs))
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        answer = stream.read()
    _, status = os.waitpid(child, 0)
    if not answer:
        raise ChildFailed(f"the child ended without an answer, with exit status {os.waitstatus_to_exitcode(status)}")
    succeeded, value, trace = pickle.loads(answer)  # noqa: S301  from our own child
    if succeeded:
        return value  # type: ignore[no-any-return]  # the type is what `function` returned there
    sys.stderr.write(f"in the child:\n{trace}")
    raise value


def _answer(writer: int, home: Path, function: Callable[[], object]) -> NoReturn:
    """Be the child: drop root, call, write the answer and end without running the parent's clean-ups."""
    status = 1
    signal.alarm(_LIMIT)
    try:
        _drop(home)
        answer = _outcome(function)
        with os.fdopen(writer, "wb") as stream:
            stream.write(answer)
        status = 0
    finally:
        os._exit(status)


def _outcome(function: Callable[[], object]) -> bytes:
    try:
        return pickle.dumps((True, function(), ""))
    except BaseException as error:  # noqa: BLE001  whatever it is belongs to the parent, pytest's own outcomes too
        trace = traceback.format_exc()
        try:
            packed = pickle.dumps((False, error, trace))
            pickle.loads(packed)  # noqa: S301  some exceptions pack and do not unpack
        except Exception:  # noqa: BLE001  any failure to carry it means the same
            return pickle.dumps((False, ChildFailed(trace), trace))
        return packed


def _drop(home: Path) -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(GID, GID, GID)
        os.setresuid(UID, UID, UID)
        # A change of user makes a process undumpable, and then its /proc/self/uid_map belongs to root (proc(5)).
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
    os.environ.update(HOME=str(home), TMPDIR=str(home), USER="nobody", LOGNAME="nobody")
    for name in ("XDG_DATA_HOME", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "LAYERFS_STORE"):
        os.environ.pop(name, None)
    os.umask(0o022)
    os.chdir(home)

"""A part of the work in a process of its own: whatever becomes of it, the rest goes on.

The process has its own session, so that Ctrl-C reaches only us, and dies with us. What it returns comes back as JSON
over a pipe (`layerfs_bench.codec`).
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from layerfs.errors import LayerfsError
from layerfs.kernel import syscalls
from layerfs.kernel.children import fork
from layerfs_bench.codec import decode, encode

T = TypeVar("T")

_GRACE = 5.0
"""Seconds that a process has to tidy up when it is told to end, before it is killed."""
_POLL = 0.02


class End(StrEnum):
    """How a child ended."""

    DONE = "done"
    UNFIT = "unfit"
    """It raised `Unfit`: the work makes no sense there."""
    FAILED = "failed"
    TIMED_OUT = "timed out"
    STUCK = "stuck"
    """It could not even be killed: the kernel holds it."""


class Unfit(Exception):
    """Report that a piece of work cannot be done in this place, and why; that is no failure."""


@dataclass(frozen=True, slots=True)
class Ended(Generic[T]):
    """What came of a child: ``value`` where it is done, else ``reason`` says why there is none."""

    end: End
    value: T | None = None
    reason: str = ""


def run(body: Callable[[], T], kind: type[T], *, limit: float) -> Ended[T]:
    """Run ``body`` in a child for at most ``limit`` seconds and return its value, which is of the dataclass ``kind``.

    The child ends with this process. A ``KeyboardInterrupt`` here ends the child first, then goes on.
    """
    reader, writer = os.pipe()
    pid = fork()
    if pid == 0:
        os.close(reader)
        _be_child(body, writer)
    os.close(writer)
    try:
        text = _read(reader, limit)
    except BaseException:
        _end(pid)
        raise
    finally:
        os.close(reader)
    if text is None:
        return Ended(End.TIMED_OUT if _end(pid) else End.STUCK, reason=f"it did not end within {limit:g} s")
    return _ended(text, os.waitpid(pid, 0)[1], kind)


def _be_child(body: Callable[[], object], pipe: int) -> None:
    """Be the child to its end; nothing of the parent's code runs after it."""
    status = 1
    try:
        os.setsid()
        syscalls.die_with_parent(signal.SIGTERM)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, _terminate)
        _answer(body, pipe)
        status = 0
    finally:
        os._exit(status)


def _terminate(number: int, frame: object) -> None:  # noqa: ARG001  the signature of a signal handler
    signal.signal(number, signal.SIG_IGN)  # a second one must not interrupt the tidying up
    sys.exit(128 + number)


def _answer(body: Callable[[], object], pipe: int) -> None:
    try:
        words = {"end": End.DONE, "value": encode(body())}
    except Unfit as reason:
        words = {"end": End.UNFIT, "reason": str(reason)}
    except LayerfsError as error:
        words = {"end": End.FAILED, "reason": error.message}
    except Exception as error:  # noqa: BLE001  a scenario may raise anything, and must not take the run with it
        where = traceback.extract_tb(error.__traceback__)[-1]
        said = f"{type(error).__name__}: {error} ({os.path.basename(where.filename)}:{where.lineno})"
        words = {"end": End.FAILED, "reason": said}
    with os.fdopen(pipe, "w", encoding="utf-8") as stream:
        json.dump(words, stream)


def _read(pipe: int, limit: float) -> str | None:
    """Return all that the child writes, or None if it has not closed the pipe in time."""
    deadline = time.monotonic() + limit
    parts: list[bytes] = []
    while True:
        left = deadline - time.monotonic()
        if left <= 0:
            return None
        if not select.select([pipe], [], [], left)[0]:
            continue
        part = os.read(pipe, 1 << 16)
        if not part:
            return b"".join(parts).decode()
        parts.append(part)


def _end(pid: int) -> bool:
    """Ask the child to end, then kill its whole session; return False if it is still there."""
    for number, patience in ((signal.SIGTERM, _GRACE), (signal.SIGKILL, _GRACE)):
        with suppress(ProcessLookupError):
            os.killpg(pid, number)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            if os.waitpid(pid, os.WNOHANG)[0]:
                return True
            time.sleep(_POLL)
    return False


def _ended(text: str, status: int, kind: type[T]) -> Ended[T]:
    if not text:
        code = os.waitstatus_to_exitcode(status)
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"status {code}"
        return Ended(End.FAILED, reason=f"its process ended with {how}")
    words = json.loads(text)
    end = End(words["end"])
    if end is End.DONE:
        return Ended(end, decode(kind, words["value"]))
    return Ended(end, reason=words["reason"])

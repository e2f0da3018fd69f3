"""Fork safely, run a part in the child, and bring its error back to the parent as if it had happened there."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from typing import NoReturn

from layerfs import errors
from layerfs.errors import LayerfsError, OperationFailed, os_error

_SIGNALLED = 128
"""A shell's exit status for a process that signal n ended is 128+n."""


def fork() -> int:
    """Fork as os.fork does, into a child that never collects what the parent left to the garbage collector.

    Threads do not survive fork(2). An object that owns some, as a zstd compressor does, waits for them when it is
    freed, in the child for ever: so what lies in reference cycles when the child begins is kept until its end.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        child = os.fork()  # noqa: TID251  the one place
        if child == 0:
            gc.freeze()
    finally:
        if collecting:
            gc.enable()
    return child


def report(pipe: int, error: LayerfsError) -> None:
    """Write an error to the pipe that `raise_reported` reads at the other end; a reader that is gone is no error."""
    words = {"kind": type(error).__name__, "message": error.message, "hint": error.hint}
    try:
        os.write(pipe, json.dumps(words).encode())
    except BrokenPipeError:
        return


def raise_reported(pipe: int) -> None:
    """Read until every writer has closed the pipe; raise what was reported, if anything was."""
    text = b""
    while block := os.read(pipe, 1 << 16):
        text += block
    if text:
        words = json.loads(text)
        kind = getattr(errors, words["kind"], OperationFailed)
        raise kind(words["message"], hint=words["hint"])


def exit_status(waited: int) -> int:
    """Return a status of wait(2) as a shell shows it: the exit status, or 128+n for signal n."""
    return shell_status(os.waitstatus_to_exitcode(waited))


def shell_status(code: int) -> int:
    """Return an exit code, negative for a signal as subprocess has it, as a shell shows it."""
    return code if code >= 0 else _SIGNALLED - code


def end_with(body: Callable[[], int], pipe: int, what: str) -> NoReturn:
    """Run ``body`` as all that is left to do in a forked child: nothing of the parent's code runs after it."""
    status = 1
    try:
        status = body()
    except LayerfsError as failure:
        report(pipe, failure)
    except OSError as failure:
        report(pipe, os_error(what, failure))
    finally:
        kind, error, trace = sys.exc_info()
        if kind is not None and error is not None:  # a mistake of ours: show it, for nobody is left to catch it
            sys.excepthook(kind, error, trace)
        os._exit(status)


def _succeed(body: Callable[[], None]) -> int:
    body()
    return 0


def attempt(body: Callable[[], None], what: str) -> None:
    """Run ``body`` in a child, whose namespaces and mounts end with it; raise the `LayerfsError` that it raises."""
    reader, writer = os.pipe()
    child = fork()
    if child == 0:
        os.close(reader)
        end_with(partial(_succeed, body), writer, what)
    os.close(writer)
    try:
        raise_reported(reader)
    finally:
        os.close(reader)
        status = os.waitpid(child, 0)[1]
    if status:
        name = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else f"status {exit_status(status)}"
        raise OperationFailed(f"cannot {what}: the child process ended with {name}")

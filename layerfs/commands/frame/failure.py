"""From exceptions to words on standard error and an exit status; the one place that ends the command.

The status stands on the error class (`layerfs.errors`); the command adds 128 + 13 for a reader that went away, 130
for an interruption, and 9 for several objects of which only some were done.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import click
from click.exceptions import NoArgsIsHelpError

from layerfs.commands.frame.session import Json, OutputClosedError, Session
from layerfs.commands.frame.text import printable, tame
from layerfs.errors import LayerfsError

USAGE = 2
PARTLY_DONE = 9
INTERRUPTED = 130
READER_GONE = 141
"""What a shell shows for a program that SIGPIPE killed."""


class Failure(NamedTuple):
    """An error as it is shown: its kind is the class's name, ``hint`` is empty where there is nothing to try."""

    kind: str
    message: str
    hint: str
    status: int

    def document(self) -> dict[str, Json]:
        """Return the error as ``--json`` shows it."""
        words: dict[str, Json] = {"kind": self.kind, "message": self.message, "exit_status": self.status}
        return {**words, "hint": self.hint} if self.hint else words


def describe(error: Exception) -> Failure:
    """Put any exception into words."""
    if isinstance(error, LayerfsError):
        return Failure(type(error).__name__, error.message, error.hint or "", error.exit_status)
    if isinstance(error, click.UsageError):
        return Failure("InvalidArgument", _lower_first(error.format_message()), _usage_hint(error), USAGE)
    if isinstance(error, click.ClickException):
        return Failure(type(error).__name__, _lower_first(error.format_message()), "", error.exit_code)
    words = f"internal error: {type(error).__name__}: {error}"
    return Failure(
        "InternalError", words, "this is a bug of layerfs: report it with the output of the same with -vv", 1
    )


def guarded(session: Session, arguments: Sequence[str], call: Callable[[], object]) -> int:
    """Run the command; return its exit status, having said on standard error what went wrong."""
    try:
        result = call()
    except NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True, color=session.colour)
        return USAGE
    except (KeyboardInterrupt, click.Abort):
        click.echo("layerfs: interrupted", err=True)
        return INTERRUPTED
    except OutputClosedError:
        return READER_GONE
    except Exception as error:  # noqa: BLE001  the edge of the program: a bug becomes one line, with -vv its traceback
        return _failed(session, arguments, error)
    return result if isinstance(result, int) else 0


def report(session: Session, error: Exception) -> Failure:
    """Say on standard error what went wrong, with ``-v`` also why, with ``-vv`` where."""
    failure = describe(error)
    lines = [click.style("layerfs: ", fg="red", bold=True) + tame(failure.message)]
    if session.verbosity:
        lines += [tame(f"caused by: {type(cause).__name__}: {cause}") for cause in _causes(error)]
    if failure.hint:
        lines.append(click.style("hint: ", fg="cyan") + tame(failure.hint))
    click.echo("\n".join(lines), err=True, color=session.colour)
    if session.verbosity > 1:
        import traceback  # noqa: PLC0415  only for those who ask

        click.echo("".join(traceback.format_exception(error)), err=True, color=session.colour, nl=False)
    return failure


def each(session: Session, names: Sequence[str], act: Callable[[str], object], *, done: str) -> int:
    """Do the same to each of several objects and go on after an error; return the exit status.

    ``done`` is the JSON key of those that it was done to. With some done and some failed the status is 9, with
    none done that of the first error.
    """
    succeeded: list[str] = []
    failed: dict[str, Failure] = {}
    for name in dict.fromkeys(names):
        try:
            act(name)
        except LayerfsError as error:
            failed[name] = report(session, error)
        else:
            succeeded.append(name)
    document: dict[str, Json] = {done: succeeded}
    if failed:
        document["failed"] = [{"name": name, **failure.document()} for name, failure in failed.items()]
    session.show(document, "" if session.quiet else "\n".join(map(printable, succeeded)))
    if not failed:
        return 0
    return PARTLY_DONE if succeeded else next(iter(failed.values())).status


def log_to_stderr(session: Session) -> None:
    """Send the library's messages to standard error: warnings always, more with ``-v``."""
    if session.quiet:
        return
    import logging  # noqa: PLC0415  `layerfs --help` ends before this

    levels = (logging.WARNING, logging.INFO, logging.DEBUG)
    logging.basicConfig(format="layerfs: %(message)s", level=levels[min(session.verbosity, 2)], stream=sys.stderr)


def _failed(session: Session, arguments: Sequence[str], error: Exception) -> int:
    failure = report(session, error)
    if session.json or (isinstance(error, click.UsageError) and "--json" in arguments):
        session.json = True
        try:
            session.show({"error": failure.document()}, "")
        except (OutputClosedError, OSError):  # the status still tells it, and the words are on standard error
            return failure.status
    return failure.status


def _usage_hint(error: click.UsageError) -> str:
    if error.ctx is None:
        return "see `layerfs --help`"
    usage = " ".join(error.ctx.command.collect_usage_pieces(error.ctx))
    return f"usage is `{error.ctx.command_path} {usage}`; see `{error.ctx.command_path} --help`"


def _causes(error: BaseException) -> Iterator[BaseException]:
    while (cause := error.__cause__ or (None if error.__suppress_context__ else error.__context__)) is not None:
        yield cause
        error = cause


def _lower_first(message: str) -> str:
    return message[:1].lower() + message[1:]

"""One run of the command: its global options, its output, and the store that it works on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from pathlib import Path

    from layerfs.store import Store

Json = None | bool | int | float | str | Sequence["Json"] | Mapping[str, "Json"]
"""What a verb may show with ``--json``; the document itself is always an object, so that keys can be added later."""


class OutputClosedError(Exception):
    """Report that nobody reads our standard output any more (`layerfs ls | head -1`): end, without a word."""


@dataclass(slots=True)
class Session:
    """What the global options say; verbs take it as their first argument.

    ``verbosity`` is the number of ``-v``: 1 shows causes of an error and messages of the library, 2 tracebacks and
    debugging messages.
    """

    store: str | None = None
    backend: str = "auto"
    options: dict[str, str] = field(default_factory=dict[str, str])
    json: bool = False
    quiet: bool = False
    verbosity: int = 0
    entered: bool = False
    """Whether the process is root of a user namespace that it entered to open the store."""

    @property
    def colour(self) -> bool | None:
        """Return False where the user forbids colour (https://no-color.org), else None: a terminal decides."""
        return False if os.environ.get("NO_COLOR") else None

    def show(self, document: Mapping[str, Json], text: str | Callable[[], str]) -> None:
        """Write the result to standard output: the document with ``--json``, else the text; once in a run."""
        if self.json:
            import json  # noqa: PLC0415  the text needs it not

            self._write(json.dumps(document, indent=2))
        elif words := text if isinstance(text, str) else text():
            self._write(words)

    def show_table(
        self,
        document: Mapping[str, Json],
        headings: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        right: Sequence[str] = (),
    ) -> None:
        """Write a list: a table, with ``-q`` the first column only, with ``--json`` the document."""
        from layerfs.commands.frame.text import printable, table  # noqa: PLC0415  JSON needs it not

        if self.quiet:
            self.show(document, "\n".join(printable(row[0]) for row in rows))
        else:
            self.show(document, lambda: table(headings, rows, right=right))

    def say(self, message: str) -> None:
        """Write a remark for people to standard error, except with ``-q``."""
        if not self.quiet:
            click.echo(message, err=True, color=self.colour)

    def location(self) -> Path:
        """Return the directory of the store: ``--store``, ``LAYERFS_STORE``, or this user's own."""
        from pathlib import Path  # noqa: PLC0415  4 ms that `layerfs --help` need not pay

        from layerfs.opening import default_path  # noqa: PLC0415  the core is loaded by the verbs that need it

        return Path(self.store).absolute() if self.store else default_path()

    @contextmanager
    def opened(self, *, create: bool = False) -> Iterator[Store]:
        """Open the store, and close it; an ordinary user enters a user namespace of their own first."""
        import layerfs  # noqa: PLC0415  as above
        from layerfs.commands.frame.privilege import become_root_for  # noqa: PLC0415  as above

        location = self.location()  # before the user changes: the default place depends on it
        self.entered = become_root_for(location, self.backend)
        with layerfs.open(location, driver=self.backend, options=self.options, create=create) as store:
            yield store

    def _write(self, text: str) -> None:
        try:
            click.echo(text, color=self.colour)
        except BrokenPipeError as error:
            _forget_standard_output()
            raise OutputClosedError from error


def _forget_standard_output() -> None:
    """Point standard output at /dev/null, so that its last flush at exit cannot fail a second time."""
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)

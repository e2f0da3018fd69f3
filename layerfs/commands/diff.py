"""`layerfs diff`: what changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from layerfs.commands.frame.describe import change_document, path_document
from layerfs.commands.frame.names import complete_either
from layerfs.commands.frame.session import Json, Session
from layerfs.commands.frame.text import printable, table
from layerfs.commands.frame.units import size
from layerfs.commands.frame.verb import verb

if TYPE_CHECKING:
    from layerfs.layer.changes import Change

_LETTERS = {"added": ("A", "green"), "modified": ("M", "yellow"), "deleted": ("D", "red")}
_SIZE_WIDTH = 8
"""Columns of the longest size: "1023 KiB"."""
_DIRECTORIES = 10
"""Directories that the summary names."""
_DEPTH = 2
"""Components of the directories by which it sums up: /usr/lib, /var/cache."""


@verb(
    "diff",
    examples=[
        "layerfs diff web",
        "layerfs diff web@before-upgrade web",
        "layerfs diff --stat debian:11 debian:12",
    ],
)
@click.argument("first", metavar="NAME", shell_complete=complete_either)
@click.argument("second", metavar="[OTHER]", required=False, shell_complete=complete_either)
@click.option("--stat", is_flag=True, help="Print counts and bytes, and the directories with the most of them.")
@click.option(
    "--verify-content",
    is_flag=True,
    help="Read the files that look equal too, to find an edit that kept size and modification time.",
)
def command(session: Session, first: str, second: str | None, *, stat: bool, verify_content: bool) -> None:
    """List what a clone changed, or how two things differ.

    With one NAME: the clone against its image. With two: what to do to NAME to get OTHER, where each is a clone, a
    snapshot CLONE@LABEL, an image, or the id of a layer. A is added, M modified, D deleted; sizes are those of regular
    files. A deleted directory stands for everything in it. With -q there are no sizes.
    """
    with session.opened() as store:
        changes = list(store.changes(first, second, verify_content=verify_content))
    if stat:
        kinds, directories = _by_kind(changes), _by_directory(changes)
        document: dict[str, Json] = {
            "stat": {sum_.name.decode(): {"count": sum_.count, "size": sum_.size} for sum_ in kinds},
            "directories": [
                {**path_document(sum_.name), "count": sum_.count, "size": sum_.size} for sum_ in directories
            ],
        }
        session.show(document, lambda: _summary(kinds, directories))
    else:
        line = _short_line if session.quiet else _line
        document = {"changes": [change_document(change) for change in changes]}
        session.show(document, lambda: "\n".join(map(line, changes)))


@dataclass(frozen=True, slots=True)
class _Sum:
    """How many changes go under a name, and the bytes of the regular files among them."""

    name: bytes
    count: int = 0
    size: int = 0

    def plus(self, change: Change) -> _Sum:
        return _Sum(self.name, self.count + 1, self.size + change.size)


def _by_kind(changes: Iterable[Change]) -> list[_Sum]:
    """Sum up by what happened."""
    sums = {kind: _Sum(kind.encode()) for kind in _LETTERS}
    for change in changes:
        sums[str(change.kind)] = sums[str(change.kind)].plus(change)
    return list(sums.values())


def _by_directory(changes: Iterable[Change]) -> list[_Sum]:
    """Sum up by directory, and return those with the most bytes, then changes, first."""
    sums: dict[bytes, _Sum] = {}
    for change in changes:
        name = b"/".join(change.path.split(b"/")[:-1][:_DEPTH])
        sums[name] = sums.get(name, _Sum(name)).plus(change)
    return sorted(sums.values(), key=lambda one: (-one.size, -one.count, one.name))[:_DIRECTORIES]


def _summary(kinds: Sequence[_Sum], directories: Sequence[_Sum]) -> str:
    rows = [(one.name.decode(), str(one.count), size(one.size)) for one in kinds]
    below = [(f"/{printable(one.name)}", str(one.count), size(one.size)) for one in directories]
    right = ("CHANGES", "SIZE")
    parts = [table(("KIND", *right), rows, right=right)]
    if below:
        parts.append(table(("DIRECTORY", *right), below, right=right))
    return "\n\n".join(parts)


def _line(change: Change) -> str:
    length = size(change.size) if change.size else ""
    return f"{_letter(change)} {length:>{_SIZE_WIDTH}}  {_path(change)}"


def _short_line(change: Change) -> str:
    return f"{_letter(change)} {_path(change)}"


def _letter(change: Change) -> str:
    letter, colour = _LETTERS[str(change.kind)]
    return click.style(letter, fg=colour)


def _path(change: Change) -> str:
    return "/" if change.path == b"." else f"/{printable(change.path)}"

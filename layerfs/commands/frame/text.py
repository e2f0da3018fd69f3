"""Text for terminals: aligned tables, and names that cannot do harm.

Names of files, images and labels come from strangers. What is shown as text never holds a control character, so that no
name can move the cursor or forge a line; ``--json`` shows the exact name.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import click

GAP = "   "


def printable(name: str | bytes) -> str:
    r"""Return a name with what is no printable character written as ``\x1b`` or ``\u202e``."""
    text = name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def tame(message: str) -> str:
    """Make a message of several lines printable, line by line."""
    return "\n".join(map(printable, message.split("\n")))


def _escape(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # a byte that is not UTF-8 (PEP 383)
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()) -> str:
    """Align rows below their headings; the columns that ``right`` names go to the right, as figures should."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(headings, *cells, strict=True)]
    flush_right = [heading in right for heading in headings]

    def line(row: Sequence[str]) -> str:
        fields = zip(row, widths, flush_right, strict=True)
        return GAP.join(cell.rjust(width) if flip else cell.ljust(width) for cell, width, flip in fields).rstrip()

    return "\n".join([click.style(line(headings), bold=True), *map(line, cells)])


def pairs(rows: Iterable[tuple[str, str]]) -> str:
    """Align names and values in two columns, without a heading."""
    known = [(name, printable(value)) for name, value in rows]
    width = max((len(name) for name, _ in known), default=0)
    return "\n".join(f"{name + ':':{width + 2}}{value}".rstrip() for name, value in known)

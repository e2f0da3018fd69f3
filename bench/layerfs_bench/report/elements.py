"""Pieces of HTML, in which nothing from a result can be more than text.

A result may come from anybody. Whatever it says passes `escaped`, which leaves no character that ends a text or an
attribute, and shows control characters and those that turn the direction of writing as their numbers. As a second wall
the page's own policy (`layerfs_bench.report.page`) lets no script run and nothing be loaded.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence

from layerfs.commands.frame.text import printable
from layerfs_bench.figures import Table
from layerfs_bench.looks import Look
from layerfs_bench.results import Cell

_SHAPES = (
    '<circle cx="14" cy="7" r="4"/>',
    '<rect x="10.2" y="3.2" width="7.6" height="7.6"/>',
    '<path d="M14 2 19 7 14 12 9 7Z"/>',
    '<path d="M14 2.4 18.6 11H9.4Z"/>',
    '<path d="M14 11.6 9.4 3H18.6Z"/>',
    '<path d="M12.5 2.5h3v3h3v3h-3v3h-3v-3h-3v-3h3Z"/>',
    '<path d="M11 2.5 14 5.5 17 2.5 18.5 4 15.5 7 18.5 10 17 11.5 14 8.5 11 11.5 9.5 10 12.5 7 9.5 4Z"/>',
)
"""The markers of `layerfs_bench.looks`, in a box of 28 by 14."""
_DASHES = {"solid": "", "dashed": ' stroke-dasharray="6 2.4"', "dotted": ' stroke-dasharray="1.4 2.2"'}


def escaped(text: str) -> str:
    """Return a text that stands for itself, in an element as in an attribute."""
    return html.escape(printable(text), quote=True)


def swatch(look: Look) -> str:
    """Return a piece of a cell's line with its marker."""
    line = f'<line x1="0" y1="7" x2="28" y2="7"{_DASHES[look.dashes]}/>'
    return (
        f'<svg class="swatch" viewBox="0 0 28 14" aria-hidden="true" style="color:var(--c{look.colour})">'
        f"{line}{_SHAPES[look.marker]}</svg>"
    )


def legend(cells: Iterable[Cell], looks: Mapping[str, Look]) -> str:
    """Return check boxes, one a cell, that show and hide it in every plot by the style sheet alone."""
    boxes = "".join(f"<li><label>{_box(looks[cell.name])}{escaped(cell.name)}</label></li>" for cell in cells)
    return f'<ul class="legend">{boxes}</ul>'


def _box(look: Look) -> str:
    return f'<input type="checkbox" id="show-{look.number}" checked>{swatch(look)}'


def hiding(looks: Iterable[Look]) -> str:
    """Return the style that takes a cell out of the plots when its box is not checked."""
    return "".join(f"body:has(#show-{look.number}:not(:checked)) .s{look.number}{{display:none}}\n" for look in looks)


def table(of: Table, caption: str, *, looks: Mapping[str, Look] | None = None) -> str:
    """Return a table; with looks the first column, which names the cells, has their swatches."""
    head = "".join(f'<th scope="col">{escaped(text)}</th>' for text in of.headings)
    body = "".join(_row(row, looks or {}) for row in of.rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escaped(caption)}"><table>'
        f"<caption>{escaped(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _row(row: Sequence[str], looks: Mapping[str, Look]) -> str:
    look = looks.get(row[0])
    first = f'<th scope="row">{swatch(look) if look else ""}{escaped(row[0])}</th>'
    return f"<tr>{first}{''.join(f'<td>{escaped(text)}</td>' for text in row[1:])}</tr>"


def section(name: str, title: str, content: str) -> str:
    """Return a section that links can name."""
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{escaped(title)}</h2>{content}</section>'


def details(summary: str, content: str) -> str:
    """Return something that opens when it is asked for."""
    return f"<details><summary>{escaped(summary)}</summary>{content}</details>"


def paragraphs(*texts: str) -> str:
    """Return paragraphs of those that are not empty."""
    return "".join(f"<p>{escaped(text)}</p>" for text in texts if text)


def bullets(texts: Iterable[str]) -> str:
    """Return a list."""
    return f"<ul>{''.join(f'<li>{escaped(text)}</li>' for text in texts)}</ul>"


def definitions(pairs: Iterable[tuple[str, str]]) -> str:
    """Return names and values; those without a value are left out."""
    return f"<dl>{''.join(f'<dt>{escaped(n)}</dt><dd>{escaped(v)}</dd>' for n, v in pairs if v)}</dl>"

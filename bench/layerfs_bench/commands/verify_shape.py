"""`layerfs bench verify-shape`: whether a result agrees with what others found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from layerfs.commands.frame.failure import PARTLY_DONE
from layerfs.commands.frame.session import Json, Session
from layerfs.commands.frame.text import tame
from layerfs.commands.frame.verb import verb

if TYPE_CHECKING:
    from layerfs_bench.shapes import Judgement

DISAGREES = 8
"""The exit status when a finding is contradicted: a threshold is crossed."""
_SIGNS = {"agrees": ("yes", "green"), "disagrees": ("NO ", "red"), "not measured": ("-  ", "yellow")}


@verb(
    "verify-shape",
    examples=[
        "layerfs bench verify-shape result.json",
        "layerfs --json bench verify-shape result.json | jq '.findings'",
    ],
)
@click.argument("result", type=click.Path(path_type=Path))
def command(session: Session, result: Path) -> int:
    """Hold a result against published findings.

    Each finding is shown with its source, the figure there, and the figure here. The exit status is 0 only if the
    result agrees with all of them; 8 if it disagrees with one; 9 if it disagrees with none, but some were not measured.
    """
    from layerfs_bench import document, shapes  # noqa: PLC0415  `layerfs bench --help` need not load them
    from layerfs_bench.analysis import analyse  # noqa: PLC0415  as above

    judged = shapes.judge(analyse(document.read(result)))
    session.show({"findings": [_document(one) for one in judged]}, lambda: "\n".join(_text(judged)))
    found = {one.agreement for one in judged}
    if shapes.Agreement.DISAGREES in found:
        return DISAGREES
    return PARTLY_DONE if shapes.Agreement.NOT_MEASURED in found else 0


def _text(judged: Sequence[Judgement]) -> Iterator[str]:
    for one in judged:
        sign, colour = _SIGNS[one.agreement]
        yield f"{click.style(sign, fg=colour)}  {one.shape.finding}"
        yield f"     published: {one.shape.published} ({one.shape.source})"
        yield tame(f"     here:      {one.here or f'not measured: it takes {one.shape.needs}'}")
    counts = Counter(one.agreement for one in judged)
    yield ", ".join(f"{count} {agreement}" for agreement, count in counts.items())


def _document(one: Judgement) -> dict[str, Json]:
    return {
        "name": one.shape.name,
        "finding": one.shape.finding,
        "agreement": str(one.agreement),
        "published": one.shape.published,
        "source": one.shape.source,
        "here": one.here,
        "needs": one.shape.needs,
    }

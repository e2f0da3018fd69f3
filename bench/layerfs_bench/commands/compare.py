"""`layerfs bench compare`: what became slower, for certain."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from layerfs.commands.frame.failure import PARTLY_DONE
from layerfs.commands.frame.session import Json, Session
from layerfs.commands.frame.text import printable, table
from layerfs.commands.frame.verb import verb
from layerfs.errors import FailedPrecondition
from layerfs_bench import words
from layerfs_bench.comparison import Change, Comparison, Verdict
from layerfs_bench.thresholds import Threshold

CROSSED = 8
"""The exit status when a threshold is crossed."""
_RIGHT = ("A", "B", "CHANGE", "P", "EFFECT", "NOISE")


@verb(
    "compare",
    examples=[
        "layerfs bench compare old.json new.json",
        "layerfs bench compare old.json new.json --fail 'median>10%'",
        "layerfs --json bench compare old.json new.json | jq '.changes[] | select(.verdict == \"slower\")'",
    ],
)
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option(
    "--fail", "fails", multiple=True, metavar="FIGURE>N%", help="Fail when a cell is slower by more; may be repeated."
)
@click.option("--all", "everything", is_flag=True, help="Show the cells that did not change as well.")
@click.option("--allow-missing", is_flag=True, help="With --fail: be content if cells of A cannot be judged in B.")
def command(
    session: Session, a: Path, b: Path, fails: tuple[str, ...], *, everything: bool, allow_missing: bool
) -> int:
    """Compare two results, and tell changes from noise.

    B is called slower or faster than A only where a rank test, the size of the effect and the noise of the processes
    agree. FIGURE is median, mean, min, p95 or p99. The exit status is 8 when a cell is slower for certain and beyond a
    limit of --fail; 9 when none is, but cells of A have no figure in B, or too few samples to be judged.
    """
    from layerfs_bench import comparison, document, thresholds  # noqa: PLC0415  `layerfs bench --help` need not load them

    limits = [thresholds.parse(text) for text in fails]
    found = comparison.compare(document.read(a), document.read(b))
    if not any(change.ratio is not None for change in found.changes):
        raise FailedPrecondition(
            f"{a} and {b} have no cell in common", hint="compare results of the same profile and scenarios"
        )
    session.show(_document(found, limits), lambda: "\n".join(_text(found, limits, everything=everything)))
    if any(limit.crossed(found) for limit in limits):
        return CROSSED
    unjudged = found.of(Verdict.LOST) or found.of(Verdict.UNKNOWN)
    return PARTLY_DONE if limits and unjudged and not allow_missing else 0


# -- text --------------------------------------------------------------------------------------------------------------


def _text(found: Comparison, limits: Sequence[Threshold], *, everything: bool) -> list[str]:
    shown = [one for one in found.changes if everything or one.verdict not in {Verdict.SAME, Verdict.UNKNOWN}]
    lines = [click.style(f"not alike: {printable(remark)}", fg="yellow") for remark in found.remarks]
    if shown:
        rows = [_row(change) for change in sorted(shown, key=_order)]
        lines.append(table(("WHAT", "CELL", "VERDICT", *_RIGHT), rows, right=_RIGHT))
    counts = ", ".join(f"{len(found.of(verdict))} {verdict}" for verdict in Verdict if found.of(verdict))
    agreeing, judged = found.agreeing
    lines.append(f"{len(found.changes)} cells: {counts}; the intervals of the medians meet in {agreeing} of {judged}")
    for limit in limits:
        lines += _limit_lines(limit, found)
    return lines


def _order(change: Change) -> tuple[int, float]:
    return list(Verdict).index(change.verdict), -(change.ratio or 0)


def _row(change: Change) -> tuple[str, ...]:
    figures = [_middle(change, "before"), _middle(change, "after")]
    moved = "" if change.ratio is None else words.shift(change.ratio - 1)
    if change.interval is not None:
        moved += f" ({words.shift(change.interval.low - 1)} to {words.shift(change.interval.high - 1)})"
    p = "" if change.p is None else "<0.001" if change.p < 0.001 else f"{change.p:.3f}"  # noqa: PLR2004  as papers do
    effect = "" if change.delta is None else f"{change.delta:+.2f}"
    band = "" if change.band is None else words.percent(change.band)
    return words.key(change.key), change.cell.name, str(change.verdict), *figures, moved, p, effect, band


def _middle(change: Change, side: str) -> str:
    """Write the median of one side, or how it ended."""
    one = change.before if side == "before" else change.after
    if one is None:
        return ""
    from statistics import median  # noqa: PLC0415  as above

    return words.duration(median(one.samples)) if one.samples else str(one.outcome)


def _limit_lines(limit: Threshold, found: Comparison) -> list[str]:
    crossed, unproved = limit.crossed(found), limit.unproved(found)
    lines = [
        click.style(f"{limit} crossed: ", fg="red", bold=True)
        + f"{printable(words.key(one.key))} on {printable(one.cell.name)}, {words.shift(limit.shift(one))}"
        for one in crossed
    ]
    if not crossed:
        judged = sum(change.p is not None for change in found.changes)
        lines.append(f"{limit}: not crossed by any of the {judged} cells that can be judged")
    lines += [
        f"{limit} not proved: {printable(words.key(one.key))} on {printable(one.cell.name)} is "
        f"{words.shift(limit.shift(one))}, which may be noise"
        for one in unproved
    ]
    return lines


# -- for machines ------------------------------------------------------------------------------------------------------


def _document(found: Comparison, limits: Sequence[Threshold]) -> dict[str, Json]:
    return {
        "changes": [_change_document(change) for change in found.changes],
        "remarks": list(found.remarks),
        "limits": [
            {
                "limit": str(limit),
                "crossed": [_shift_document(limit, one) for one in limit.crossed(found)],
                "unproved": [_shift_document(limit, one) for one in limit.unproved(found)],
            }
            for limit in limits
        ],
    }


def _shift_document(limit: Threshold, change: Change) -> dict[str, Json]:
    return {"key": str(change.key), "cell": change.cell.name, "shift": limit.shift(change)}


def _change_document(change: Change) -> dict[str, Json]:
    interval = [change.interval.low, change.interval.high] if change.interval else None
    return {
        "key": str(change.key),
        "cell": change.cell.name,
        "verdict": str(change.verdict),
        "ratio": change.ratio,
        "interval": interval,
        "p": change.p,
        "delta": change.delta,
        "band": change.band,
        "agrees": change.agrees,
    }

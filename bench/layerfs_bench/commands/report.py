"""`layerfs bench report`: a result as a page or a table."""

from __future__ import annotations

from pathlib import Path

import click

from layerfs.commands.frame.session import Session
from layerfs.commands.frame.verb import verb


@verb(
    "report",
    examples=[
        "layerfs bench report result.json",
        "layerfs bench report result.json -o report.html",
        "layerfs bench report result.json --csv -o figures.csv",
    ],
)
@click.argument("result", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Where to write it; RESULT.html unless told.")
@click.option(
    "--csv", "as_csv", is_flag=True, help="Write the figures as comma-separated values, a line a measurement."
)
def command(session: Session, result: Path, output: Path | None, *, as_csv: bool) -> None:
    """Make a page with plots, or a CSV table, of a result.

    The page is one file that needs nothing else, no network and no script. It is readable on light and on dark, by
    keyboard, and has the table behind each plot.
    """
    from layerfs_bench import document, report  # noqa: PLC0415  `layerfs bench --help` need not load them

    target = output or result.with_suffix(".csv" if as_csv else ".html")
    results = document.read(result)
    if as_csv:
        report.write_csv(results, target)
    else:
        report.write(results, target)
    session.show({"report": str(target)}, str(target))

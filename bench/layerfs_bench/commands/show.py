"""`layerfs bench show`: a result in the terminal."""

from __future__ import annotations

from pathlib import Path

import click

from layerfs.commands.frame.session import Session
from layerfs.commands.frame.verb import verb


@verb("show", examples=["layerfs bench show result.json", "layerfs --json bench show result.json | jq '.findings'"])
@click.argument("result", type=click.Path(path_type=Path))
def command(session: Session, result: Path) -> None:
    """Show a result in the terminal: tables with ratios, and plots.

    Each cell stands beside the plain directory of its file system; "~" marks what is unstable, and the last lines say
    why, what failed, and what was left out.
    """
    from layerfs_bench import document, terminal  # noqa: PLC0415  `layerfs bench --help` need not load them

    terminal.show(session, document.read(result))

"""`layerfs metrics`: numbers for Prometheus."""

from __future__ import annotations

from pathlib import Path

import click

from layerfs.commands.frame.session import Json, Session
from layerfs.commands.frame.verb import verb
from layerfs.metrics import openmetrics
from layerfs.metrics.openmetrics import Family


@verb(
    "metrics",
    examples=["layerfs metrics", "layerfs metrics --output /var/lib/node_exporter/textfile/layerfs.prom"],
)
@click.option(
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write them to a file, in one step, for node_exporter's textfile collector.",
)
def command(session: Session, output: Path | None) -> None:
    """Print what the store takes and holds, as metrics.

    The text is OpenMetrics. `layerfs serve --metrics FILE` keeps such a file up to date, with what the service does.
    """
    with session.opened() as store:
        families = store.metrics()
    if output is not None:
        openmetrics.write(families, output)
    document: dict[str, Json] = {"metrics": [_document(family) for family in families]}
    session.show(document, str(output) if output else openmetrics.render(families).rstrip("\n"))


def _document(family: Family) -> dict[str, Json]:
    samples: list[Json] = [{"labels": dict(sample.labels), "value": sample.value} for sample in family.samples]
    return {"name": family.name, "type": family.type, "help": family.help, "unit": family.unit, "samples": samples}

"""`layerfs bench list`: what can be measured."""

from __future__ import annotations

from collections.abc import Sequence

import click

from layerfs.commands.frame.session import Json, Session
from layerfs.commands.frame.verb import verb

_CHOICES = ("scenarios", "cells", "profiles")


@verb("list", examples=["layerfs bench list", "layerfs bench list cells", "layerfs --json bench list | jq .scenarios"])
@click.argument("what", type=click.Choice(_CHOICES), default="scenarios")
def command(session: Session, what: str) -> None:
    """List the scenarios, cells and profiles.

    Of a scenario it shows what it times. With --json everything is listed, and for each metric what theory expects.
    """
    if session.json:
        session.show({"scenarios": _scenarios(), "cells": _cells(), "profiles": _profiles()}, "")
        return
    headings, rows = {"scenarios": _scenario_rows, "cells": _cell_rows, "profiles": _profile_rows}[what]()
    session.show_table({}, headings, rows)


Rows = tuple[Sequence[str], Sequence[Sequence[str]]]


def _scenarios() -> list[Json]:
    from layerfs_bench import scenarios  # noqa: PLC0415  `layerfs bench --help` need not load them

    return [
        {
            "name": one.name,
            "text": one.summary,
            "metrics": [
                {"name": metric.name, "measures": metric.measures, "unit": str(metric.unit), "expects": metric.expects}
                for metric in one.metrics
            ],
        }
        for one in scenarios.every()
    ]


def _scenario_rows() -> Rows:
    from layerfs_bench import scenarios  # noqa: PLC0415  as above

    rows = [
        (one.name if number == 0 else "", metric.name, metric.measures)
        for one in scenarios.every()
        for number, metric in enumerate(one.metrics)
    ]
    return ("SCENARIO", "METRIC", "MEASURES"), rows


def _cells() -> list[Json]:
    from layerfs_bench import lanes  # noqa: PLC0415  as above

    return [
        {"name": one.name, "driver": one.driver, "place": one.place, "options": dict(one.options)}
        for one in lanes.CELLS
    ]


def _cell_rows() -> Rows:
    from layerfs_bench import lanes  # noqa: PLC0415  as above

    rows = [
        (one.name, one.driver, one.place, " ".join(f"{name}={value}" for name, value in one.options))
        for one in lanes.CELLS
    ]
    return ("CELL", "DRIVER", "FILE SYSTEM", "OPTIONS"), rows


def _profiles() -> list[Json]:
    from layerfs_bench.profiles import PROFILES  # noqa: PLC0415  as above

    return [
        {
            "name": one.name,
            "text": one.text,
            "scenarios": list(one.scenarios),
            "passes": one.passes,
            "budget": one.budget,
        }
        for one in PROFILES.values()
    ]


def _profile_rows() -> Rows:
    from layerfs_bench.profiles import PROFILES  # noqa: PLC0415  as above

    rows = [
        (one.name, one.text, str(one.passes), f"{one.budget:g} s" if one.budget else "none")
        for one in PROFILES.values()
    ]
    return ("PROFILE", "WHAT", "PASSES", "BUDGET"), rows

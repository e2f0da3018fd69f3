"""Directives that write tables from the code, so that they cannot disagree with it.

``exit-statuses`` lists the error classes with their exit status and gRPC code, ``drivers`` the built-in drivers with
what their traits declare, ``bench-scenarios``, ``bench-cells`` and ``bench-profiles`` what `layerfs bench` measures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import entry_points
from typing import ClassVar

import click
from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

from layerfs import errors
from layerfs.commands.frame.verb import global_options
from layerfs.contract import Traits
from layerfs_bench import lanes, scenarios
from layerfs_bench.profiles import PROFILES

FIXED_STATUSES = (
    (0, "", "success"),
    (8, "", "a threshold was crossed"),
    (9, "", "partly done: what failed has been reported, the rest stands"),
    (130, "", "interrupted (Ctrl-C)"),
    (141, "", "the reader of the output went away (as SIGPIPE ends a program)"),
)
"""What the command ends with besides an error."""


_COLUMNS = ("first write copies", "write policy", "layers", "unpacks side by side", "rootless", "no namespace")
"""What the table of drivers tells of each."""


def exit_statuses() -> list[tuple[str, str, str, str]]:
    """Return the rows of the table: status, error class, gRPC code, meaning; sorted by status."""
    rows = [(status, name, "", meaning) for status, name, meaning in FIXED_STATUSES]
    rows += [(error.exit_status, error.__name__, error.grpc_code, _meaning(error)) for error in _error_classes()]
    return [(str(status), name, code, meaning) for status, name, code, meaning in sorted(rows)]


def driver_traits() -> list[tuple[str, ...]]:
    """Return the rows of the table: the name and what `_COLUMNS` say."""
    return sorted((name, *_words(traits)) for name, traits in _traits())


def _error_classes() -> list[type[errors.LayerfsError]]:
    return [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.LayerfsError)]


def _meaning(error: type[errors.LayerfsError]) -> str:
    line = (error.__doc__ or "").splitlines()[0].rstrip(".")
    return line.removeprefix("Report that ").removeprefix("Report ")


def _traits() -> Iterator[tuple[str, Traits]]:
    for entry in entry_points(group="layerfs.drivers"):
        module = __import__(entry.module, fromlist=["*"])
        for value in vars(module).values():
            if isinstance(value, type) and value.__module__ == entry.module and isinstance(_declared(value), Traits):
                yield entry.name, value.__dict__["traits"]


def _declared(value: type) -> object:
    return value.__dict__.get("traits")


def _words(traits: Traits) -> tuple[str, ...]:
    layers = "no limit" if traits.max_layers is None else str(traits.max_layers)
    return (
        traits.copy_unit.value,
        traits.write_policy.value,
        layers,
        "yes" if traits.rebase else "no",
        "yes" if traits.rootless else "no",
        "yes" if traits.unprivileged else "no",
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> nodes.table:
    group = nodes.tgroup("", *(nodes.colspec(colwidth=1) for _ in header), cols=len(header))
    head, body = nodes.thead("", _row(header)), nodes.tbody("", *(_row(row) for row in rows))
    group += [head, body]
    return nodes.table("", group)


def _row(cells: Sequence[str]) -> nodes.row:
    return nodes.row("", *(nodes.entry("", nodes.paragraph(text=cell)) for cell in cells))


class ExitStatuses(Directive):
    """Write the table of exit statuses."""

    has_content: ClassVar[bool] = False

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        return [_table(("exit status", "error", "gRPC code", "meaning"), exit_statuses())]


class Drivers(Directive):
    """Write the table of drivers."""

    has_content: ClassVar[bool] = False

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        return [_table(("driver", *_COLUMNS), driver_traits())]


class BenchScenarios(Directive):
    """Write the table of the benchmark's scenarios, a row for each metric."""

    has_content: ClassVar[bool] = False

    def run(self) -> list[nodes.Node]:
        """Return a definition for each scenario, and its metrics as a table."""
        found: list[nodes.Node] = []
        for one in scenarios.builtin():
            section = nodes.section("", nodes.title(text=one.name), ids=[nodes.make_id(f"scenario-{one.name}")])
            rows = [(metric.name, metric.measures, metric.expects) for metric in one.metrics]
            section += [
                nodes.paragraph(text=one.summary),
                _table(("metric", "what is timed", "what theory expects"), rows),
            ]
            found.append(section)
        return found


class BenchCells(Directive):
    """Write the table of the benchmark's cells."""

    has_content: ClassVar[bool] = False

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        rows = [(one.name, one.driver, one.place, " ".join(map("=".join, one.options))) for one in lanes.CELLS]
        return [_table(("cell", "driver", "file system", "options"), rows)]


class BenchProfiles(Directive):
    """Write the table of the benchmark's profiles."""

    has_content: ClassVar[bool] = False

    def run(self) -> list[nodes.Node]:
        """Return the table."""
        rows = [
            (one.name, one.text, str(one.passes), str(one.rounds), f"{one.budget:g} s" if one.budget else "none")
            for one in PROFILES.values()
        ]
        return [_table(("profile", "for", "visits a cell", "rounds a visit", "budget"), rows)]


def drop_global_options(app: Sphinx, ctx: click.Context, lines: list[str]) -> None:  # noqa: ARG001  Sphinx's signature
    """Leave the options that every verb takes to the page's first section."""
    if ctx.parent is None:
        return
    names = {name for param in global_options(root=False) for name in param.opts}
    kept: list[str] = []
    dropping = False
    for line in lines:
        if line.startswith(".. option:: "):
            dropping = line.removeprefix(".. option:: ").replace(",", " ").split()[0] in names
        if not dropping:
            kept.append(line)
    lines[:] = kept


def setup(app: Sphinx) -> dict[str, bool]:
    """Register them, and what tidies the reference of the command."""
    app.connect("sphinx-click-process-options", drop_global_options)
    app.add_directive("exit-statuses", ExitStatuses)
    app.add_directive("drivers", Drivers)
    app.add_directive("bench-scenarios", BenchScenarios)
    app.add_directive("bench-cells", BenchCells)
    app.add_directive("bench-profiles", BenchProfiles)
    return {"parallel_read_safe": True, "parallel_write_safe": True}

"""`layerfs bench run`: measure."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from layerfs.commands.frame.failure import INTERRUPTED, PARTLY_DONE
from layerfs.commands.frame.session import Session
from layerfs.commands.frame.units import parse_time
from layerfs.commands.frame.verb import verb
from layerfs.errors import Unsupported

if TYPE_CHECKING:
    from layerfs_bench.results import Results
    from layerfs_bench.setup import Wishes

_SAVE_EVERY = 5.0
"""Seconds between two writings of the result so far."""
_PROFILES = ("quick", "standard", "paper", "ci")


def _duration(text: str) -> float:
    """Read a time as the type of an option, in seconds."""
    try:
        return parse_time(text)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from error


@verb(
    "run",
    examples=[
        "layerfs bench run --profile standard --budget 30m",
        "layerfs bench run --cell overlay2 --cell btrfs --scenario write.first",
        "layerfs --store /var/lib/layerfs bench run",
        "layerfs bench run --resume bench-standard.json",
    ],
)
@click.option(
    "--profile", type=click.Choice(_PROFILES), default="quick", help="How much to measure.", show_default=True
)
@click.option("--cell", "cells", multiple=True, metavar="NAME", help="A cell or driver to measure; may be repeated.")
@click.option("--scenario", "scenarios", multiple=True, metavar="NAME", help="A scenario or group; may be repeated.")
@click.option("--budget", type=_duration, metavar="TIME", help="Begin nothing new after this time, such as 5m.")
@click.option(
    "--seed", type=int, default=1, metavar="NUMBER", help="Fixes the order and all choices.", show_default=True
)
@click.option(
    "--work", type=click.Path(path_type=Path, file_okay=False, exists=True), metavar="DIR",
    help="Where file systems are made: in memory where they fit, unless a directory is given.",
)  # fmt: skip
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Where the result goes.")
@click.option("--report/--no-report", default=True, help="Write a page beside the result.", show_default=True)
@click.option(
    "--resume", type=click.Path(path_type=Path, dir_okay=False, exists=True), metavar="FILE",
    help="Go on with an interrupted run, with its profile, cells, scenarios and seed.",
)  # fmt: skip
def command(  # noqa: PLR0917  click passes them by name
    session: Session,
    profile: str,
    cells: tuple[str, ...],
    scenarios: tuple[str, ...],
    budget: float | None,
    seed: int,
    work: Path | None,
    out: Path | None,
    resume: Path | None,
    *,
    report: bool,
) -> int:
    """Measure the drivers of this machine.

    As root it makes file systems on loop devices and measures every driver on them; without, it measures what works
    without, in a user namespace. With --store it measures that store, where it is. What cannot be measured is named
    with the reason. Ctrl-C ends it with what was measured so far. The exit status is 9 when something failed.
    """
    from layerfs_bench import document, setup  # noqa: PLC0415  `layerfs bench --help` need not load them
    from layerfs_bench.profiles import PROFILES  # noqa: PLC0415  as above

    earlier = document.read(resume) if resume else None
    if earlier:
        profile, seed = earlier.run.profile, earlier.run.seed
        cells, scenarios = earlier.run.cells, earlier.run.scenarios
    wishes = setup.Wishes(
        PROFILES[profile], cells, scenarios, seed, budget, work, _own_store(session), tuple(sys.argv[1:])
    )
    path = out or resume or Path(f"bench-{profile}-{datetime.now().astimezone():%Y%m%d-%H%M%S}.json")
    results = _run(session, wishes, earlier, path)
    _show(session, results, path, _write_page(session, results, path.with_suffix(".html")) if report else None)
    if results.run.interrupted:
        return INTERRUPTED
    return PARTLY_DONE if any(one.reason and one.outcome != "skipped" for one in results.measurements) else 0


def _own_store(session: Session) -> Path | None:
    """Return the store that was asked for on the command line; LAYERFS_STORE alone asks for none to be measured."""
    context = click.get_current_context()
    asked = (context, context.find_root())
    given = any(one.get_parameter_source("store") is ParameterSource.COMMANDLINE for one in asked)
    return session.location() if given else None


def _run(session: Session, wishes: Wishes, earlier: Results | None, path: Path) -> Results:
    from layerfs_bench import document, setup  # noqa: PLC0415  as above
    from layerfs_bench.live import live  # noqa: PLC0415  as above
    from layerfs_bench.runner import Runner  # noqa: PLC0415  as above

    setup.isolate()
    with live(session) as listener, setup.prepared(wishes, listener) as plan:
        runner = Runner(plan, earlier=earlier, listener=listener)
        save = _now_and_then(lambda results: document.write(results, path))
        try:
            results = runner.run(save)
        except BaseException:
            document.write(runner.results(), path)
            raise
        document.write(results, path)
        return results


def _now_and_then(save: Callable[[Results], None]) -> Callable[[Results], None]:
    """Return a function that saves, but not more often than every few seconds."""
    last = 0.0

    def maybe(results: Results) -> None:
        nonlocal last
        if time.monotonic() - last >= _SAVE_EVERY:
            save(results)
            last = time.monotonic()

    return maybe


def _show(session: Session, results: Results, path: Path, page: Path | None) -> None:
    from layerfs_bench import document, terminal  # noqa: PLC0415  as above

    if session.json:
        session.show(document.to_document(results), "")
    elif session.quiet:
        session.show({}, str(path))
    else:
        terminal.show(session, results)
    session.say(f"result: {path}" + (f"\nreport: {page}" if page else ""))


def _write_page(session: Session, results: Results, page: Path) -> Path | None:
    """Write the report, and return where it is; None, said why, where it cannot be made."""
    from layerfs_bench import report  # noqa: PLC0415  as above

    try:
        report.write(results, page)
    except Unsupported as error:
        session.say(f"no report: {error.message}" + (f" ({error.hint})" if error.hint else ""))
        return None
    return page

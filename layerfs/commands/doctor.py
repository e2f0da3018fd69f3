"""`layerfs doctor`: what works here."""

from __future__ import annotations

import os
from pathlib import Path

import click

from layerfs import drivers
from layerfs.commands.frame.host import Fact, facts
from layerfs.commands.frame.privilege import become_root
from layerfs.commands.frame.session import Json, Session
from layerfs.commands.frame.text import printable
from layerfs.commands.frame.units import size
from layerfs.commands.frame.verb import verb
from layerfs.errors import Unsupported
from layerfs.kernel import mountinfo


@verb(
    "doctor", examples=["layerfs doctor", "layerfs --store /mnt/disk doctor", "layerfs --json doctor | jq '.drivers'"]
)
def command(session: Session) -> int:
    """Tell which drivers work here, and why the others do not.

    Everything is found by trying it: mounts are made and taken away, in the store or, where there is none yet, in the
    nearest directory above its place. The exit status is 0 if some driver works, else 5.
    """
    location = session.location()
    place = _nearest(location)
    kernel = facts()
    become_root()
    probes = drivers.probe(place)
    here = _here(location, place)
    checks = [_probe_fact(probe) for probe in probes]
    document: dict[str, Json] = {
        **{fact.name.replace(" ", "_"): fact.detail for fact in here},
        "exists": location == place,
        "drivers": [_probe_document(probe) for probe in probes],
        "features": [{"name": one.name, "works": one.works, "detail": one.detail, "hint": one.hint} for one in kernel],
    }
    session.show(document, lambda: "\n".join(_sections(here, checks, kernel)))
    return 0 if any(check.works for check in checks) else Unsupported.exit_status


def _nearest(location: Path) -> Path:
    """Return the store's directory, or the nearest one above it that is there."""
    return next(path for path in (location, *location.parents) if path.is_dir())


def _here(location: Path, place: Path) -> tuple[Fact, ...]:
    space, mount, system = os.statvfs(place), mountinfo.holding(place), os.uname()
    free = (
        f"{size(space.f_bavail * space.f_frsize)} of {size(space.f_blocks * space.f_frsize)}, {space.f_favail} inodes"
    )
    return (
        Fact("store", True, str(location)),
        Fact("tried in", True, str(place)),
        Fact("file system", True, f"{mount.type} on {mount.source}" if mount else "unknown"),
        Fact("free", True, free),
        Fact("kernel", True, f"{system.sysname} {system.release} {system.machine}"),
    )


def _probe_fact(probe: drivers.Probe) -> Fact:
    if probe.error is not None:
        return Fact(probe.name, False, probe.error.message, probe.error.hint or "")
    if probe.traits is None:
        return Fact(probe.name, True, "")
    traits = probe.traits
    depth = f"up to {traits.max_layers} layers" if traits.max_layers else "layers without limit"
    return Fact(probe.name, True, f"{traits.write_policy}, by {traits.copy_unit}, {depth}")


def _probe_document(probe: drivers.Probe) -> dict[str, Json]:
    fact = _probe_fact(probe)
    document: dict[str, Json] = {"name": fact.name, "works": fact.works}
    if not fact.works:
        return {**document, "reason": fact.detail, "hint": fact.hint}
    if probe.traits is not None:
        document["copy_unit"] = str(probe.traits.copy_unit)
        document["write_policy"] = str(probe.traits.write_policy)
        document["max_layers"] = probe.traits.max_layers
        document["rootless"] = probe.traits.rootless
    return document


def _sections(here: tuple[Fact, ...], checks: list[Fact], kernel: tuple[Fact, ...]) -> list[str]:
    lines: list[str] = []
    for title, rows in (("Here", here), ("Drivers", checks), ("Kernel", kernel)):
        width = max(len(row.name) for row in rows)
        lines += ["", click.style(title, bold=True)] if lines else [click.style(title, bold=True)]
        for row in rows:
            lines += _lines(row, width, mark=title != "Here")
    return lines


def _lines(fact: Fact, width: int, *, mark: bool) -> list[str]:
    """Return a line for what works, and for what does not a second one with what to do."""
    sign = (click.style("yes", fg="green") if fact.works else click.style("no ", fg="red")) + "  " if mark else ""
    line = f"  {fact.name:{width}}  {sign}{printable(fact.detail)}".rstrip()
    margin = " " * (width + 4 + (5 if mark else 0))
    return [line, f"{margin}{click.style('hint:', fg='cyan')} {printable(fact.hint)}"] if fact.hint else [line]

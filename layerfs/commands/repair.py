"""`layerfs repair`: mend what `layerfs check` finds."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from pathlib import Path

import click

from layerfs.checking.rebuild import reason, rebuild
from layerfs.checking.repair import Outcome, Remedy
from layerfs.commands.frame.failure import PARTLY_DONE
from layerfs.commands.frame.problems import problem_block, problem_document
from layerfs.commands.frame.progress import progress
from layerfs.commands.frame.registry import plain_option
from layerfs.commands.frame.session import Json, Session
from layerfs.commands.frame.verb import verb
from layerfs.registry.options import Options


@verb("repair", examples=["layerfs repair", "layerfs repair --force", "layerfs repair --force --from debian.tar"])
@click.option("--force", is_flag=True, help="Do it.")
@click.option("--fast", is_flag=True, help="Look only at what `layerfs check` finds without --deep.")
@click.option("--offline", is_flag=True, help="Ask no registry.")
@click.option(
    "--from",
    "files",
    type=click.Path(exists=True, path_type=Path),
    multiple=True,
    metavar="SOURCE",
    help="Look for blobs in what was imported, too; may be repeated.",
)
@plain_option()
def command(
    session: Session, files: tuple[Path, ...], *, force: bool, fast: bool, offline: bool, plain_http: bool
) -> int:
    """Show what could be done about what is wrong, and do it with --force.

    Layers are unpacked again from their blobs, and take their place while what stands on them is not mounted; blobs are
    brought again from --from, or the registries that their images' names say. A lost or damaged database is made anew,
    while nobody else has the store open. Files that are none of the store's go to lost+found in it; leftovers, and
    mounts of what is gone, go. What nothing can mend is named, with what is lost. The exit status is 0 if nothing is
    wrong any more, and 9 if something is.
    """
    options = None if offline else Options(plain_http=plain_http)
    lost = reason(session.location())
    if lost and not force:
        words = "make a new database of its record and the blobs"
        session.show({"done": False, "database": lost, "remedies": []}, f"store: {lost}\n  planned: {words}")
        session.say("do it with `layerfs repair --force`")
        return PARTLY_DONE
    if lost:
        _rebuild(session, lost)
    with session.opened() as store, progress(session) as listener:
        remedies = store.repair(deep=not fast, force=force, options=options, files=files, listener=listener)
    document: dict[str, Json] = {"done": force, "remedies": [_document(remedy) for remedy in remedies]}
    session.show(document, "\n".join(_lines(remedies)))
    session.say(_summary(remedies, done=force))
    return PARTLY_DONE if any(remedy.outcome is not Outcome.MENDED for remedy in remedies) else 0


def _rebuild(session: Session, lost: str) -> None:
    done = rebuild(session.location())
    session.say(f"{lost}; made anew with {done.images} images and {done.clones} clones")
    for path in done.aside:
        session.say(f"put aside: {path}")


def _document(remedy: Remedy) -> Json:
    return {**problem_document(remedy.problem), "outcome": remedy.outcome, "remedy": remedy.words}


def _lines(remedies: tuple[Remedy, ...]) -> list[str]:
    lines: list[str] = []
    for (_, outcome, words), group in groupby(remedies, lambda each: (each.problem.name, each.outcome, each.words)):
        lines += problem_block([remedy.problem for remedy in group], (f"{outcome}: {words}",))
    return lines


def _summary(remedies: tuple[Remedy, ...], *, done: bool) -> str:
    if not remedies:
        return "nothing is wrong"
    counts = Counter(remedy.outcome for remedy in remedies)
    shown = ", ".join(f"{counts[outcome]} {outcome}" for outcome in Outcome if counts[outcome])
    return shown if done else f"{shown}; do it with `layerfs repair --force`"

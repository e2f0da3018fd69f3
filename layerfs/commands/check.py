"""`layerfs check`: what is wrong with a store."""

from __future__ import annotations

from layerfs.check import Problem
from layerfs.commands.frame.session import Json, Session
from layerfs.commands.frame.text import printable
from layerfs.commands.frame.units import short
from layerfs.commands.frame.verb import verb
from layerfs.errors import Corrupt


@verb("check", examples=["layerfs check", "layerfs --json check | jq -r '.problems[].hurts[]' | sort -u"])
def command(session: Session) -> int:
    """Look for what is gone or broken, and whom that hurts.

    That is snapshots and blobs of which nothing is there, or that their driver calls broken, with the images and
    clones that need them. Nothing is changed, and contents are not read: a bit that flipped inside a layer does not
    show. The exit status is 7 if something is wrong.
    """
    with session.opened() as store:
        problems = store.check()
    document: dict[str, Json] = {"problems": [_document(problem) for problem in problems]}
    session.show(document, "\n".join(line for problem in problems for line in _lines(problem)))
    if problems:
        return Corrupt.exit_status
    session.say("nothing is wrong")
    return 0


def _document(problem: Problem) -> dict[str, Json]:
    return {
        "name": problem.name,
        "message": problem.message,
        "hint": problem.hint,
        "hurts": list(problem.hurts),
    }


def _lines(problem: Problem) -> list[str]:
    name = short(problem.name) if problem.name.startswith("sha256:") else problem.name
    hurts = ", ".join(problem.hurts) or ("nobody" if problem.name else "all of the store")
    lines = (f"{name or 'store'}: {problem.message}", f"  hurts: {hurts}", f"  hint: {problem.hint}")
    return [printable(line) for line in (lines if problem.hint else lines[:2])]

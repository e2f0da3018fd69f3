"""`layerfs check`: what is wrong with a store."""

from __future__ import annotations

from datetime import timedelta

import click

from layerfs.commands.frame.problems import problem_document, problem_lines
from layerfs.commands.frame.progress import progress
from layerfs.commands.frame.session import Json, Session
from layerfs.commands.frame.spans import span
from layerfs.commands.frame.verb import verb
from layerfs.errors import Corrupt


@verb(
    "check",
    examples=[
        "layerfs check",
        "layerfs check --deep --older-than 7d",
        "layerfs --json check | jq -r '.problems[].hurts[]' | sort -u",
    ],
)
@click.option("--deep", is_flag=True, help="Read everything, and compare it with digests.")
@click.option(
    "--older-than",
    type=span,
    metavar="SPAN",
    help="With --deep: leave out snapshots that were found whole since then (12h, 7d, 2w).",
)
@click.option("--jobs", type=click.IntRange(1), help="With --deep: look at so many at a time; default the processors.")
def command(session: Session, older_than: timedelta | None, jobs: int | None, *, deep: bool) -> int:
    """Look for what is gone or broken, and whom that hurts.

    That is the database, snapshots and blobs of which nothing is there, or that their driver calls broken, files that
    are none of the store's, what work left that was interrupted, and mounts of what is gone. With --deep all blobs and
    committed snapshots are read, and files named that are not what they were; what was found whole is remembered, so
    that an interrupted check goes on with --older-than. No image and no clone is changed. The exit status is 7 if
    something is wrong; `layerfs repair` mends it.
    """
    if (older_than or jobs) and not deep:
        raise click.UsageError("--older-than and --jobs are for --deep.")
    with session.opened() as store, progress(session) as listener:
        problems = store.check(deep=deep, older_than=older_than, jobs=jobs, listener=listener)
    document: dict[str, Json] = {"problems": [problem_document(problem) for problem in problems]}
    session.show(document, "\n".join(problem_lines(problems)))
    if problems:
        return Corrupt.exit_status
    session.say("nothing is wrong")
    return 0

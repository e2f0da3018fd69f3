"""`layerfs run`: a container of an image or a clone."""

from __future__ import annotations

import secrets
import sys
from typing import TYPE_CHECKING, Any

import click

from layerfs.commands.frame.container import container_options, wanted
from layerfs.commands.frame.failure import report
from layerfs.commands.frame.names import complete_either
from layerfs.commands.frame.quota import chosen, quota_options
from layerfs.commands.frame.session import Session
from layerfs.commands.frame.verb import verb
from layerfs.errors import InvalidArgument, LayerfsError, NotFound, PermissionDenied
from layerfs.runtime.bundle import bundled
from layerfs.runtime.tool import Runtime, find_runtime

if TYPE_CHECKING:
    from layerfs.clones import Clone
    from layerfs.contract import Quota
    from layerfs.runtime.container import Container
    from layerfs.store import Store

_NOT_FOUND, _NOT_EXECUTED, _NOT_RUN = 127, 126, 125
"""Exit statuses of `docker run`, and the first two of shells (POSIX, 2.8.2)."""


@verb(
    "run",
    examples=[
        "layerfs run --rm debian:12 -- cat /etc/os-release",
        "layerfs run --memory 256m --cpus 0.5 --pids 100 --name web debian:12 bash",
        "layerfs run --net host web -- apt-get update",
    ],
    settings={"allow_interspersed_args": False, "ignore_unknown_options": False},
)
@click.argument("what", metavar="IMAGE|CLONE", shell_complete=complete_either)
@click.argument("words", metavar="[CMD]...", nargs=-1, type=click.UNPROCESSED)
@click.option("--rm", "remove", is_flag=True, help="Remove the clone at the end.")
@click.option("--name", metavar="NAME", help="The name of the clone that is made.")
@click.option("--runtime", metavar="PROGRAM", envvar="LAYERFS_RUNTIME", help="runc, crun, or another by its path.")
@quota_options
@container_options()
def command(
    session: Session,
    what: str,
    words: tuple[str, ...],
    *,
    remove: bool,
    name: str | None,
    runtime: str | None,
    size: int | None,
    inodes: int | None,
    **given: Any,  # noqa: ANN401  click's
) -> int:
    """Run a container of an image or a clone.

    Of an image a clone is made first, which stays with what was written unless --rm is given; of a clone its own root
    is run. CMD takes the place of the image's command. The container sees its own processes and host name, and no
    network unless --net says so. The exit status is that of CMD, or 128 and the number of the signal that ended it; 127
    where there is no such command, 126 where it cannot be executed, 125 where the container could not be set up.
    An ordinary user is root inside, by a user namespace.
    """
    if session.json:
        raise click.UsageError("a container has the standard streams to itself: there is no document for --json.")
    container = wanted(words[1:] if words[:1] == ("--",) else words, given, terminal=_terminal(given["tty"]))
    with session.opened() as store:
        tool = find_runtime(runtime)
        clone, made = _clone(store, what, name, chosen(size, inodes))
        try:
            return _run(session, store, clone, container, tool)
        finally:
            if remove and made:
                clone.remove()
            elif made:
                session.say(f"the clone {clone.name} stays; `layerfs rm {clone.name}` removes it")


def _terminal(asked: bool | None) -> bool:  # noqa: FBT001  click's third value
    """Tell whether the container gets a terminal: by default where we have one at both ends."""
    here = sys.stdin.isatty() and sys.stdout.isatty()
    if asked and not here:
        raise InvalidArgument("there is no terminal here for --tty", hint="leave it out")
    return here if asked is None else asked


def _clone(store: Store, what: str, name: str | None, quota: Quota) -> tuple[Clone, bool]:
    """Return the clone of this name, or a new one of the image of this name, and whether it was made."""
    there = next((clone for clone in store.clones() if clone.name == what), None) if name is None else None
    if there is not None:
        if quota:
            raise InvalidArgument(f"{what} is a clone already", hint=f"`layerfs quota {what}` changes its quota")
        return there, False
    try:
        return store.clone(what, name, quota=quota), True
    except NotFound as error:
        raise NotFound(
            f"there is neither a clone nor an image {what!r}", hint="`layerfs ls` and `layerfs image ls` list them"
        ) from error


def _run(session: Session, store: Store, clone: Clone, container: Container, tool: Runtime) -> int:
    with bundled(store, clone, container, f"{clone.name}-{secrets.token_hex(4)}") as bundle:
        try:
            return tool.run(bundle)
        except LayerfsError as error:
            report(session, error)
            if isinstance(error, NotFound):
                return _NOT_FOUND
            return _NOT_EXECUTED if isinstance(error, PermissionDenied) else _NOT_RUN

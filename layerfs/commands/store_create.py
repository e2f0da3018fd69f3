"""`layerfs store create`: a new store."""

from __future__ import annotations

import click

import layerfs
from layerfs.commands.frame.privilege import become_root_for
from layerfs.commands.frame.session import Json, Session
from layerfs.commands.frame.units import parse_size
from layerfs.commands.frame.verb import verb
from layerfs.errors import AlreadyExists, NotFound
from layerfs.kernel.userns import IdMap
from layerfs.volume import LoopVolume


def _size(text: str) -> int:
    """Read a size as the type of an option."""
    try:
        return parse_size(text)
    except ValueError as error:
        raise click.BadParameter(f"{error}.") from error


def _id_map(uidmap: tuple[str, ...], gidmap: tuple[str, ...]) -> IdMap:
    from layerfs.layer.owners import parse_ranges  # noqa: PLC0415  few stores have a map

    return IdMap(parse_ranges(uidmap), parse_ranges(gidmap or uidmap))


@verb(
    "create",
    examples=[
        "layerfs store create",
        "layerfs --store /srv/images store create --loop 10G --fs btrfs",
        "layerfs store create --uidmap 0:100000:65536",
    ],
)
@click.option(
    "--loop", "capacity", type=_size, metavar="SIZE", help="Keep it in a file of up to this size, such as 10G."
)
@click.option(
    "--fs", "file_system", type=click.Choice(["btrfs", "ext4", "xfs", "zfs", "dm"]), help="What is in that file."
)
@click.option(
    "--uidmap",
    multiple=True,
    metavar="INSIDE:OUTSIDE:COUNT",
    help="Unpack layers for a user namespace with these user ids; may be repeated.",
)
@click.option(
    "--gidmap",
    multiple=True,
    metavar="INSIDE:OUTSIDE:COUNT",
    help="The same for group ids; the default is the map of the users.",
)
def command(
    session: Session, capacity: int | None, file_system: str | None, uidmap: tuple[str, ...], gidmap: tuple[str, ...]
) -> None:
    """Make a store, on request in a file with its own file system.

    Without --loop it is a directory, as the first import makes it too. With --loop, --fs brings what its driver needs
    to a disk that has something else; the file grows as it is used, and it is mounted whenever the store is opened
    until `layerfs store close`. That needs root. "dm" is a thin pool of the devicemapper driver.

    With --uidmap every layer gets the owners that its ids have outside such a user namespace, and a commit maps them
    back. The map is the store's for good.
    """
    if (capacity is None) != (file_system is None):
        raise click.UsageError("--loop and --fs belong together.")
    if gidmap and not uidmap:
        raise click.UsageError("--gidmap needs --uidmap.")
    id_map = _id_map(uidmap, gidmap) if uidmap else None
    location = session.location()
    become_root_for(location, session.backend)
    try:
        layerfs.open(location, create=False).close()
    except NotFound:
        pass
    else:
        raise AlreadyExists(f"{location} is a store already", hint="use it, or name another place by --store")
    volume = LoopVolume(capacity, file_system) if capacity and file_system else None
    with layerfs.open(location, driver=session.backend, options=session.options, loop=volume, id_map=id_map) as store:
        document: dict[str, Json] = {"store": str(store.path), "driver": store.driver.name}
        session.show(document, str(store.path))

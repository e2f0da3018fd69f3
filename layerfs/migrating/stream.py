"""Hand committed snapshots on as streams, between drivers that understand each other (`Transferable`).

It takes less time than a look at every file, and keeps what only such a driver has, such as compressed blocks.
"""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from layerfs.contract import Driver, Kind, Snapshot, Transferable
from layerfs.errors import LayerfsError, NoSpace
from layerfs.migrating.plan import Carried
from layerfs.parts import Parts
from layerfs.snapshotter import Planned

_log = logging.getLogger(__name__)


def transfer(source: Parts, target: Parts, one: Carried, name: str) -> bool:
    """Make a committed snapshot in the target from a stream of the source's, under a name.

    Return False, and leave nothing, where that does not work: the drivers do not understand each other, the parent in
    the target was not received, too, but made anew, or this user may not. Raise `NoSpace`.
    """
    drivers = _speaking(source.driver, target.driver)
    if drivers is None:
        return False
    sent = source.snapshotter.snapshot(one.name)
    parent = target.snapshotter.snapshot(one.parent) if one.parent else None
    parents = (parent.id, *parent.parents) if parent else ()
    try:
        with target.snapshotter.together([Planned(name, one.parent, one.labels)]) as (made,):
            target.snapshotter.holdings.remove(made.id)  # the stream makes it
            _pass_on(*drivers, sent, replace(made, kind=Kind.COMMITTED, parents=parents))
    except NoSpace:
        raise
    except LayerfsError as error:
        _log.info("carrying the files of %s, for its stream is of no use there: %s", one.shown, error)
        return False
    return True


def _speaking(one: Driver, other: Driver) -> tuple[Transferable, Transferable] | None:
    if isinstance(one, Transferable) and isinstance(other, Transferable) and one.stream == other.stream:
        return one, other
    return None


def _pass_on(sender: Transferable, receiver: Transferable, sent: Snapshot, made: Snapshot) -> None:
    """Let one driver write into a pipe what the other reads; where both fail, the reader tells why."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    with ThreadPoolExecutor(1, thread_name_prefix="layerfs-send") as pool:
        sending = pool.submit(_send, sender, sent, writer)
        try:
            receiver.receive(made, reader)
        finally:
            os.close(reader)
        sending.result()


def _send(sender: Transferable, sent: Snapshot, writer: int) -> None:
    try:
        sender.send(sent, writer)
    finally:
        os.close(writer)

"""From the options of a mount to the union that they describe, and to the process that serves it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from layerfs.contract import Whiteouts, WritePolicy
from layerfs.errors import Corrupt, LayerfsError, NotFound, PermissionDenied, Unsupported, os_error
from layerfs.kernel import temporary
from layerfs.layerdirs import own_whiteouts
from layerfs_fuse import daemon, fusepy
from layerfs_fuse.daemon import Ready
from layerfs_fuse.index.builder import build
from layerfs_fuse.index.reader import Index
from layerfs_fuse.mounting import Attachment
from layerfs_fuse.options import StackOptions, parse
from layerfs_fuse.session import Wishes
from layerfs_fuse.union import Options, Union, Upper, ledger
from layerfs_fuse.union.counted import CountedUnion, CountedUpper

_AUFS = b"aufs"
"""By which the index of branches of AUFS is known."""
_LAYER = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC

_log = logging.getLogger(__name__)


def perform(source: str, options: Sequence[str], target: Path) -> None:
    """Mount a union at a directory, served by a process of its own (`layerfs.kernel.mounters.Mounter`)."""
    chosen = parse(options)
    try:
        place = target.resolve(strict=True)
    except OSError as error:
        raise os_error(f"mount at {target}", error) from error
    daemon.start(lambda ready: serve(source, chosen, place, ready), f"serve a union at {place}", log=chosen.log)


def serve(source: str, options: StackOptions, target: Path, ready: Ready | None = None) -> None:
    """Mount a union and serve it until it is unmounted, in this process; raise `LayerfsError`."""
    attachment = Attachment(source, options.allow_other, options.flags | ({"ro"} if options.read_only else set()))
    # What the kernel writes by itself, or keeps back, cannot be refused.
    counted = options.quota is not None and not options.read_only
    wishes = Wishes(
        passthrough=options.passthrough and not counted and os.geteuid() == 0, writeback=not counted, acl=options.acl
    )
    with opened(options) as union:
        if options.fusepy:
            if counted:
                raise Unsupported("fusepy counts nothing for a quota", hint="leave out fusepy, or the quota")
            if not (options.users.identity and options.groups.identity):
                raise Unsupported("fusepy shows owners as they are", hint="leave out fusepy, or the mapping")
            fusepy.serve(union, target, attachment, ready=ready)
        else:
            daemon.serve(
                union,
                target,
                attachment,
                wishes,
                ready=ready,
                volatile=options.volatile,
                users=options.users,
                groups=options.groups,
            )


@contextmanager
def opened(options: StackOptions) -> Iterator[Union]:
    """Give the union that the options describe, and close it."""
    with ExitStack() as stack:
        whiteouts = options.marks or own_whiteouts()
        upper = None
        if options.upper is not None and options.work is not None and not options.read_only:
            kind = Upper if options.quota is None else CountedUpper
            upper = kind.open(options.upper, options.work, marks=whiteouts)
            stack.callback(upper.close)
        layers = [open_layer(path, stack) for path in _layers(options, stack)]
        index = stack.enter_context(_index(options, layers, whiteouts))
        write = WritePolicy.REDIRECT_ON_WRITE if options.redirect else WritePolicy.COPY_ON_WRITE
        how = Options(volatile=options.volatile, write=write, redirect_from=options.redirect_from)
        if isinstance(upper, CountedUpper) and options.quota is not None:
            stack.callback(os.close, ledger.hold(options.quota))
            union: Union = CountedUnion(index, layers, upper, how, quota=options.quota)
        else:
            union = Union(index, layers, upper, how)
        stack.callback(union.close)
        yield union


def _layers(options: StackOptions, stack: ExitStack) -> Sequence[Path]:
    """Return the lower directories, the lowest first: an upper directory that is not written to is the uppermost."""
    lowers = options.lowers
    if options.read_only and options.upper is not None:
        lowers = (*lowers, options.upper)
    return lowers or (stack.enter_context(temporary.room("layerfs-empty-")),)


def open_layer(path: Path, stack: ExitStack) -> int:
    """Open the directory of a layer until the stack is closed."""
    try:
        fd = os.open(path, _LAYER)
    except OSError as error:
        raise os_error("open a layer", error) from error
    stack.callback(os.close, fd)
    return fd


def _index(options: StackOptions, layers: Sequence[int], whiteouts: Whiteouts) -> Index:
    """Return the index of the layers: the one that is kept if it is theirs, else a new one, kept if possible."""
    place, aufs = options.index, options.aufs
    if place is None:
        return _passing_index(layers, whiteouts, aufs=aufs)
    try:
        return open_index(place, layers, aufs=aufs)
    except (NotFound, Corrupt) as error:
        _log.warning("building the index of %d layers anew: %s", len(layers), error)
    try:
        build(place, layers, whiteouts=whiteouts, aufs=aufs, identity=_AUFS if aufs else b"")
    except PermissionDenied as error:
        _log.warning("cannot keep the index: %s", error)
        return _passing_index(layers, whiteouts, aufs=aufs)
    return Index.open(place)


def open_index(place: Path, layers: Sequence[int], *, aufs: bool = False) -> Index:
    """Open the index of these layers, the lowest first; raise `NotFound`, and `Corrupt` for one of other layers.

    One in which the same directories were read as branches of AUFS is another, too.
    """
    index = Index.open(place)
    try:
        seen = [(status.st_ino, status.st_mtime_ns) for status in map(os.fstat, layers)]
        known = [(layer.root, layer.mtime) for layer in index.layer_table]
        if known != seen or (index.identity.rstrip(b"\0") == _AUFS) is not aufs:
            raise Corrupt(f"{place} is the index of other layers", hint="delete it: it is built anew")
    except (LayerfsError, OSError):
        index.close()
        raise
    return index


def _passing_index(layers: Sequence[int], whiteouts: Whiteouts, *, aufs: bool) -> Index:
    """Build an index that is gone with this process."""
    with temporary.room("layerfs-index-") as place:
        build(place / "index", layers, whiteouts=whiteouts, aufs=aufs, sync=False)
        return Index.open(place / "index")

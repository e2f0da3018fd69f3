"""Apply a layer: make the files of a tar stream below a directory, and prove by digests that it was the right stream.

Rules: OCI image specification, ``layer.md`` ("Applying Changesets", "Whiteouts"). A *whiteout* ``.wh.<name>`` removes a
name of lower layers, ``.wh..wh..opq`` all names of a directory (which makes it *opaque*), wherever in the stream they
stand; neither touches what the same layer brings. Names and link targets are cleaned of ``.`` and ``..`` as text, the
root being its own parent; symbolic links in the way are followed below the root.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from layerfs.contract import LayerRoot, Whiteouts
from layerfs.errors import Corrupt, LayerfsError, os_error
from layerfs.events import Listener, Progress, ignore
from layerfs.layer import tar
from layerfs.layer.below import Below, Mounted
from layerfs.layer.digest import Digest
from layerfs.layer.directories import Directories
from layerfs.layer.entries import Entries, Fill
from layerfs.layer.limits import Limits
from layerfs.layer.pipeline import LayerStream, Readable
from layerfs.layer.reader import TarReader
from layerfs.layer.tar import Header, shown

if TYPE_CHECKING:
    from layerfs.layer.owners import Owners

Lower = Callable[[], Below]
"""Give the lower layers merged."""


class OwnerPolicy(StrEnum):
    """What to do where the kernel refuses an owner, an attribute or a device to an ordinary user."""

    KEEP = "keep"
    """Fail: the tree is exact, or there is none."""
    SQUASH = "squash"
    """Leave the owner as it is, and leave out the attribute or the device; `Applied.squashed` counts them."""


@dataclass(frozen=True, slots=True)
class Applied:
    """What came of a layer.

    ``digest`` and ``compressed_size`` (bytes) are those of the stream as it was read, ``diff_id`` and ``size`` those of
    the uncompressed tar to its last byte. ``entries`` counts tar headers. ``lists_root`` tells that the layer says what
    its root directory is.
    """

    diff_id: Digest
    digest: Digest
    compressed_size: int
    size: int
    entries: int
    squashed: int = 0
    lists_root: bool = True


def apply(
    stream: Readable,
    root: LayerRoot,
    *,
    lower: Path | Lower | None = None,
    base: bool = False,
    apart: bool = False,
    owner: OwnerPolicy = OwnerPolicy.KEEP,
    owners: Owners | None = None,
    limits: Limits | None = None,
    known: Digest | None = None,
    filler: Fill | None = None,
    listener: Listener = ignore,
    item: str = "",
    total: int | None = None,
) -> Applied:
    """Unpack a layer, gzip, zstd or plain, into ``root``; read the stream to its last byte.

    For the overlay styles ``root`` receives this layer only. ``lower`` shows the layers below merged: directories that
    the layer does not list get their attributes from there, symbolic links there are followed, hard links to files
    there copy them up, and whiteouts of nothing are left out. Without it such directories belong to root with mode
    0755, and such hard links fail. It may be a function, which is called if the layer needs it at all. ``base`` tells
    that nothing is below at all, so that whiteouts have no meaning. ``apart`` raises `LowerNeeded` where the result
    would not be that with ``lower``, as far as the layer's root directory is not concerned. ``owners`` translate the
    ids of the layer to those on disk.

    ``known`` is the digest of the stream where it was verified before, and saves making it again; the DiffID is made
    always. ``filler`` gives regular files their length and takes their data, for who wants to know the tree only.
    ``listener`` hears of the compressed bytes, ``item`` and ``total`` (bytes) being passed on. Raise `Corrupt` for what
    is no sound layer, `LimitExceeded` for one beyond ``limits``, `Unsupported` for what the root cannot hold, and the
    errors of the operating system; the root then holds part of the layer and should be thrown away.
    """
    limits = limits or Limits()
    try:
        with LayerStream(stream, limits, known=known) as source:
            reader = TarReader(_reported(source, listener, item, total), limits)
            lenient = owner is OwnerPolicy.SQUASH
            entries = _apply(
                reader,
                root,
                lower,
                base=base,
                apart=apart,
                lenient=lenient,
                owners=owners,
                limits=limits,
                filler=filler,
            )
            for _ in _reported(source, listener, item, total):
                pass
    except OSError as error:
        raise os_error(f"unpack a layer into {root.path}", error) from error
    return Applied(
        source.diff_id,
        source.digest,
        source.compressed_size,
        source.size,
        reader.entries,
        entries.squashed,
        entries.lists_root,
    )


def _reported(source: LayerStream, listener: Listener, item: str, total: int | None) -> Iterator[bytes]:
    """Pass blocks on, and tell the listener how far it is."""
    for block in source:
        listener(Progress("unpack", item, source.compressed_size, total))
        yield block


def _apply(
    reader: TarReader,
    root: LayerRoot,
    lower: Path | Lower | None,
    *,
    base: bool,
    apart: bool,
    lenient: bool,
    owners: Owners | None,
    limits: Limits,
    filler: Fill | None,
) -> Entries:
    """Apply every entry; return what made files of them, and knows what came of it."""
    tracking = root.whiteouts is Whiteouts.REMOVE and not base and not _is_empty(root.path)
    below = partial(Mounted, lower) if isinstance(lower, Path) else lower
    directories = Directories(root, below, base=base, tracking=tracking, lenient=lenient)
    with closing(directories):
        directories.apart = apart and not base
        if owners is not None:
            directories.owner = owners.root
            if base:
                os.fchown(directories.root.fd, *owners.root)
        entries = Entries(directories, reader.payload, limits, filler)
        for header in reader if owners is None else owners.unpacked(reader):
            try:
                entries.add(header)
            except OSError as error:
                raise _entry_error(header, error) from error
        directories.finish()
    return entries


def _is_empty(path: Path) -> bool:
    """Tell whether a directory has no entries."""
    with os.scandir(path) as entries:
        return next(entries, None) is None


def _entry_error(header: Header, error: OSError) -> LayerfsError:
    """Say which entry the operating system refused."""
    what = f"unpack the tar entry {shown(header.name)}"
    if error.errno == errno.ENAMETOOLONG:
        return Corrupt(f"cannot {what}: a name or target in it is longer than the file system allows")
    if error.errno == errno.EPERM and header.type in (tar.CHARACTER_DEVICE, tar.BLOCK_DEVICE):
        return os_error(f"{what}, a device", error)
    return os_error(what, OSError(error.errno, error.strerror))

"""Build the index of a stack of layers: from the index of the layers below and the directories of those on top."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from layerfs.contract import Whiteouts
from layerfs.errors import Busy, InvalidArgument, LayerfsError, Unsupported, os_error
from layerfs.kernel.descent import Descent
from layerfs_fuse.index.format import IDENTITY_SIZE, LAYER_MASK, Layer, unique_ino
from layerfs_fuse.index.markers import Marks, marks_of
from layerfs_fuse.index.reader import Index
from layerfs_fuse.index.records import Records
from layerfs_fuse.index.scan import Found, Scanner, changed
from layerfs_fuse.index.tables import Tables

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_WHAT = "build the index of layers"


def build(
    path: Path,
    layers: Sequence[int],
    *,
    parent: Index | None = None,
    whiteouts: Whiteouts = Whiteouts.OVERLAY,
    aufs: bool = False,
    identity: bytes = b"",
    sync: bool = True,
) -> None:
    """Write the index of ``layers`` on top of those of ``parent`` to ``path``, in whole or not at all.

    ``layers`` are descriptors of the layers' directories, the lowest first, whose marks are of the kind ``whiteouts``,
    or which are branches of ``aufs``; nobody may change them. ``identity`` is up to 64 bytes by which the caller will
    know the index again (`Index.identity`). ``sync`` makes file and name durable. In a user namespace owners are kept
    as seen there. Raise `FailedPrecondition` when a layer changes meanwhile, `Busy` where something is mounted in it,
    `Unsupported` for one that takes content from other places (overlay's ``redirect`` and ``metacopy``), and `NoSpace`.
    """
    if len(identity) > IDENTITY_SIZE:
        raise InvalidArgument(f"an identity of {len(identity)} bytes: an index keeps {IDENTITY_SIZE} at most")
    if (parent.layers if parent else 0) + len(layers) > LAYER_MASK + 1:
        raise Unsupported(f"an index keeps {LAYER_MASK + 1:,} layers at most")
    if not layers and not parent:
        raise InvalidArgument("an index of no layers")
    try:
        with _Draft(path) as draft:
            tables = Tables(Records(draft.fd))
            if parent is not None and parent.wasteful:
                tables.adopt(parent)
            elif parent is not None:
                tables.load(parent)
            for layer in layers:
                if tables.wasteful:
                    tables = _compacted(draft, tables)
                _Merge(tables, marks_of(whiteouts), _scanner(aufs=aufs)).run(layer)
            tables.finish(identity)
            draft.publish(sync=sync)
    except OSError as error:
        raise _explained(error) from error


def _scanner(*, aufs: bool) -> type[Scanner]:
    if not aufs:
        return Scanner
    from layerfs_fuse.index.aufs import AufsScanner  # noqa: PLC0415  else every mount would load the layer engine

    return AufsScanner


def _explained(error: OSError) -> LayerfsError:
    if error.errno == errno.EXDEV:
        return Busy(f"cannot {_WHAT}: something is mounted at {error.filename!r} in a layer", hint="unmount it")
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ESTALE) and error.filename:
        return changed(os.fsencode(error.filename))
    return os_error(_WHAT, error)


def _compacted(draft: _Draft, tables: Tables) -> Tables:
    """Start the file again, without the dead rows."""
    tables.finish(b"")
    with Index.of(draft.fd) as index:
        draft.restart()
        clean = Tables(Records(draft.fd))
        clean.adopt(index)
    return clean


class _Draft:
    """A new file that takes its name when it is whole, and vanishes otherwise."""

    def __init__(self, path: Path) -> None:
        self._name = os.fsencode(path.name)
        self._temporary = b".%s.%s" % (self._name[:64], os.urandom(8).hex().encode())
        self._directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.fd = self._created()
        except OSError:
            os.close(self._directory)
            raise

    def _created(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        return os.open(self._temporary, flags, 0o644, dir_fd=self._directory)

    def restart(self) -> None:
        """Begin with an empty file; who has mapped the one so far keeps it."""
        os.close(self.fd)
        os.unlink(self._temporary, dir_fd=self._directory)
        self.fd = self._created()

    def publish(self, *, sync: bool) -> None:
        """Give the file its name; with ``sync`` both outlive a crash from now on."""
        if sync:
            os.fsync(self.fd)
        os.rename(self._temporary, self._name, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        if sync:
            os.fsync(self._directory)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.fd)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._temporary, dir_fd=self._directory)
        os.close(self._directory)


class _Merge:
    """Merge one layer into the tables."""

    def __init__(self, tables: Tables, marks: Marks, scanner: type[Scanner]) -> None:
        self._tables = tables
        self._scanner = scanner(marks, self._ino)
        self._ordinals: dict[int, int] = {}

    def run(self, layer: int) -> None:
        """Read the layer's directory tree; ``layer`` is a descriptor of its root."""
        with Descent(os.open(b"/proc/self/fd/%d/." % layer, _DIRECTORY)) as walk:
            status = os.fstat(walk.fd)
            self._begin(walk.fd, status)
            root = self._scanner.root(walk.fd)
            directory = self._tables.set_root(root)
            pending = [self._merge(walk.fd, directory)]
            while pending:
                if not pending[-1]:
                    pending.pop()
                    if pending:
                        walk.up()
                    continue
                name, directory, found = pending[-1].pop()
                walk.down(name)
                if os.fstat(walk.fd).st_ino != found.status.st_ino:
                    raise changed(name)
                pending.append(self._merge(walk.fd, directory))
        self._tables.settle()

    def _begin(self, root: int, status: os.stat_result) -> None:
        """Find out on which of the stack's file systems the layer lies; its number is the next one on a new one."""
        # 0 is said by file systems that cannot tell (and by tmpfs of older kernels).
        device = os.fstatvfs(root).f_fsid or status.st_dev
        known = {layer.device: layer.ordinal for layer in self._tables.layers}
        ordinal = known.get(device, max(known.values(), default=-1) + 1)
        self._ordinals = {status.st_dev: ordinal}
        self._tables.begin_layer(Layer(status.st_ino, status.st_mtime_ns, device, ordinal))

    def _ino(self, status: os.stat_result) -> int:
        """Return the number to show."""
        ordinal = self._ordinals.get(status.st_dev)
        if ordinal is None:  # a subvolume inside the layer: a number that no layer and no other layer's has
            ordinal = 1 << 32 | len(self._tables.layers) << 16 | len(self._ordinals)
            self._ordinals[status.st_dev] = ordinal
        return unique_ino(status.st_ino, ordinal) if ordinal else status.st_ino

    def _merge(self, fd: int, directory: int) -> list[tuple[bytes, int, Found]]:
        """Merge one directory, and return what is to be merged below it."""
        listing = self._scanner.listing(fd)
        return self._tables.merge(directory, listing.found, listing.hidden)

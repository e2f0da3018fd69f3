"""List what changed between two trees, or what the upper directory of an overlay changes in the layers below it.

Compared are type, mode, owner, size, modification time to the nanosecond, extended attributes, device numbers, targets
of symbolic links, and which names are links to one file; contents on request. Sockets count as absent, for no layer can
hold one, unless they are asked for. Both walks go by descriptors and give the same answer for the same trees; the one
of two whole trees is the oracle.
"""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from layerfs.contract import Candidates, LayerRoot, Whiteouts
from layerfs.errors import FailedPrecondition, os_error
from layerfs.kernel.descent import Descent
from layerfs.layer import attributes
from layerfs.layer.links import Links, UnseenNames
from layerfs.layer.tar import shown

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_PIECE = 1 << 20
ROOT = b"."
"""The path of the root directory itself in a `Change`."""

_log = logging.getLogger(__name__)


class ChangeKind(StrEnum):
    """What happened to a path."""

    ADDED = "added"
    MODIFIED = "modified"
    DELETED = "deleted"


@dataclass(frozen=True, slots=True)
class Change:
    """One changed path, relative to the root and without a slash in front; ``size`` is a regular file's, in bytes.

    A directory that is deleted, or replaced by another file, stands for everything in it. The root itself is ".".
    """

    kind: ChangeKind
    path: bytes
    size: int = 0


def changes(
    lower: Path | None,
    upper: Path,
    *,
    verify_content: bool = False,
    candidates: Candidates | None = None,
    sockets: bool = False,
) -> Iterator[Change]:
    """List what makes the tree ``lower`` into the tree ``upper``, sorted by path; None is a tree without anything.

    ``verify_content`` reads the files that look equal, to find an edit that kept size and modification time.
    ``candidates`` tell where to look, which gives the same answer if they are right (`layerfs.contract.NativeChanges`).
    ``sockets`` lists these, too.
    """
    whole = LayerRoot(upper, Whiteouts.REMOVE)
    if lower is None or candidates is None:
        return iter(_Comparison(lower, whole, verify_content=verify_content, sockets=sockets).run())
    return iter(_selected(lower, whole, candidates, verify_content=verify_content, sockets=sockets))


def _selected(
    lower: Path, upper: LayerRoot, candidates: Candidates, *, verify_content: bool, sockets: bool
) -> list[Change]:
    """Compare the candidates only."""
    unseen = UnseenNames(lower, upper.path)
    paths = set(candidates.paths)
    while True:
        only = _Only(paths, candidates.trees)
        comparison = _Comparison(lower, upper, verify_content=verify_content, only=only, sockets=sockets)
        found = comparison.run()
        # A file that lost or got a name changes those of its names that nobody touched.
        try:
            more = unseen.of(comparison.links) - paths
        except OSError as error:
            raise os_error(f"list the hard links of {upper.path}", error) from error
        if not more:
            return found
        paths |= more


def upper_changes(upper: LayerRoot, lower: Path | None, *, sockets: bool = False) -> Iterator[Change]:
    """List what an overlay's upper directory changes in ``lower``, a view of the layers below it merged.

    The answer is that of `changes` for the merged trees, but only the upper directory is walked. Files that were
    copied up and not changed are left out, by comparing their contents. Where a copy-up broke a hard link, the names
    that stayed below are not listed, as nothing happened to them; `changes` cannot tell which these are and lists all.
    ``sockets`` lists these, too. Raise `FailedPrecondition` for an upper directory that refers to lower names
    (redirect_dir, metacopy), which no layer can say.
    """
    return iter(_Comparison(lower, upper, verify_content=True, sockets=sockets).run())


@dataclass(slots=True)
class _Frame:
    """A directory under comparison: its path with a slash at the end, the names still to do, the last first.

    ``whole`` tells that all its names are compared, and not only candidates.
    """

    path: bytes
    names: list[bytes]
    in_lower: bool
    opaque: bool
    whole: bool


class _Only:
    """The candidates of a comparison, as the names to look at in each directory."""

    def __init__(self, paths: Iterable[bytes], trees: frozenset[bytes]) -> None:
        self._trees = trees
        self._names: dict[bytes, set[bytes]] = {}
        for path in (*paths, *trees):
            rest = path
            while rest:
                above, slash, name = rest.rpartition(b"/")
                there = self._names.setdefault(above + slash, set())
                if name in there:
                    break
                there.add(name)
                rest = above

    def names(self, directory: bytes) -> set[bytes]:
        """Return the names to look at in a directory, of which the path ends in a slash (b"" is the root)."""
        return self._names.get(directory, set())

    def whole(self, path: bytes) -> bool:
        """Tell whether everything below a path may differ."""
        return path in self._trees


class _Comparison:
    """One comparison of a lower tree with a whole upper one, or with what an overlay holds of it."""

    def __init__(
        self,
        lower: Path | None,
        upper: LayerRoot,
        *,
        verify_content: bool,
        only: _Only | None = None,
        sockets: bool = False,
    ) -> None:
        self._lower_path = lower
        self._upper_path = upper.path
        self._whiteouts = upper.whiteouts
        self._partial = upper.whiteouts is not Whiteouts.REMOVE
        self._verify_content = verify_content
        self._prefix = attributes.overlay_prefix(upper.whiteouts)
        self._only = only
        self._sockets = sockets
        self.links = Links()
        """What was seen of files with several names."""
        self._found: list[Change] = []

    def run(self) -> list[Change]:
        """Compare, and return the changes sorted."""
        try:
            with ExitStack() as stack:
                self._upper = stack.enter_context(Descent(os.open(self._upper_path, _DIRECTORY)))
                if self._lower_path is not None:
                    self._lower = stack.enter_context(Descent(os.open(self._lower_path, _DIRECTORY)))
                self._walk()
                linked = dict(self.links.changed())
                if self._partial and self._lower_path is not None:
                    linked.update(self.links.left_behind(os.open(self._lower_path, _DIRECTORY)))
        except OSError as error:
            raise os_error(f"compare {self._upper_path} with what is below it", error) from error
        self._found.extend(Change(ChangeKind.MODIFIED, path, _size(after)) for path, after in linked.items())
        self._found.sort(key=lambda change: b"" if change.path == ROOT else change.path.replace(b"/", b"\0"))
        return self._found

    def _walk(self) -> None:
        """Go through the upper tree, the lower one beside it as far as it goes."""
        in_lower = self._lower_path is not None
        after = os.fstat(self._upper.fd)
        if not in_lower:
            self._found.append(Change(ChangeKind.ADDED, ROOT))
        elif self._differs(os.fstat(self._lower.fd), after, b"."):
            self._found.append(Change(ChangeKind.MODIFIED, ROOT))
        frames = [self._frame(b"", in_lower=in_lower, opaque=False, whole=self._only is None)]
        while frames:
            frame = frames[-1]
            if frame.names:
                if (below := self._compare(frame, frame.names.pop())) is not None:
                    frames.append(below)
                continue
            frames.pop()
            if frames:
                self._upper.up()
                if frame.in_lower:
                    self._lower.up()

    def _frame(self, path: bytes, *, in_lower: bool, opaque: bool, whole: bool) -> _Frame:
        """List the present directories; only an overlay's merged one shows lower names that it does not hold itself."""
        if self._only is not None and not whole:
            return _Frame(path, sorted(self._only.names(path), reverse=True), in_lower, opaque, whole)
        names = {os.fsencode(name) for name in os.listdir(self._upper.fd)}
        if self._partial and not opaque and path:  # the kernel takes no such mark on an overlay's root
            opaque = self._mark(b".", b"opaque") == b"y"
        if in_lower and (opaque or not self._partial):
            names.update(os.fsencode(name) for name in os.listdir(self._lower.fd))
        return _Frame(path, sorted(names, reverse=True), in_lower, opaque, whole)

    def _compare(self, frame: _Frame, name: bytes) -> _Frame | None:
        """Compare one name; return the directory to enter."""
        path = frame.path + name
        after = self._seen(self._upper.fd, name, path)
        before = _status(self._lower.fd, name) if frame.in_lower else None
        if before is not None and self._is_left_out(before):
            before = None
        if before is not None:
            self._note_lower(path, before, after)
        if after is None:
            if before is not None:
                self._found.append(Change(ChangeKind.DELETED, path, _size(before)))
            return None
        is_directory = stat.S_ISDIR(after.st_mode)
        if before is None:
            self._found.append(Change(ChangeKind.ADDED, path, _size(after)))
        elif self._differs(before, after, name):
            self._found.append(Change(ChangeKind.MODIFIED, path, _size(after)))
        elif not is_directory:
            self.links.add(path, before, after)
        if not is_directory:
            return None
        both = before is not None and stat.S_ISDIR(before.st_mode)
        self._upper.down(name)
        if both:
            self._lower.down(name)
        whole = frame.whole or not both or (self._only is not None and self._only.whole(path))
        return self._frame(path + b"/", in_lower=both, opaque=frame.opaque, whole=whole)

    def _note_lower(self, path: bytes, before: os.stat_result, after: os.stat_result | None) -> None:
        """Remember what becomes of the names of files that may have several."""
        if stat.S_ISDIR(before.st_mode):
            if after is None or not stat.S_ISDIR(after.st_mode):
                self.links.gone.add(path)
        elif before.st_nlink > 1:
            self.links.seen.add(path)

    def _seen(self, directory: int, name: bytes, path: bytes) -> os.stat_result | None:
        """Return the status of an upper name; None where it is a socket or hides a lower name."""
        status = _status(directory, name)
        if status is None:
            return None
        if self._is_left_out(status):
            _log.info("left out the socket %s", shown(path))
            return None
        if not self._partial:
            return status
        if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0:
            return None
        if stat.S_ISREG(status.st_mode) and not status.st_size and self._mark(name, b"whiteout") is not None:
            return None
        if stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode):
            self._refuse_references(name, path)
        return status

    def _is_left_out(self, status: os.stat_result) -> bool:
        return not self._sockets and stat.S_ISSOCK(status.st_mode)

    def _mark(self, name: bytes, mark: bytes) -> bytes | None:
        """Read a mark of the overlay on a name in the present upper directory."""
        path = attributes.proc_path(self._upper.fd, name)
        return attributes.get(path, self._prefix + mark)

    def _differs(self, before: os.stat_result, after: os.stat_result, name: bytes) -> bool:
        """Tell whether a name is another file than before."""
        if _told(before) != _told(after):
            return True
        kind = stat.S_IFMT(after.st_mode)
        lower, upper = self._lower.fd, self._upper.fd
        if kind == stat.S_IFLNK and os.readlink(name, dir_fd=lower) != os.readlink(name, dir_fd=upper):
            return True
        if (before.st_dev, before.st_ino) == (after.st_dev, after.st_ino):
            return False
        if self._xattrs(lower, name, Whiteouts.REMOVE) != self._xattrs(upper, name, self._whiteouts):
            return True
        return self._verify_content and kind == stat.S_IFREG and _contents_differ(lower, upper, name)

    def _refuse_references(self, name: bytes, path: bytes) -> None:
        """Refuse a file that gets its name or its bytes from a lower one."""
        for mark in (b"redirect", b"metacopy"):
            if self._mark(name, mark) is not None:
                raise FailedPrecondition(
                    f"{shown(path)} in {self._upper_path} refers to a lower layer ({mark.decode()}), "
                    "which a layer cannot say",
                    hint="mount it with redirect_dir=off,metacopy=off",
                )

    @staticmethod
    def _xattrs(directory: int, name: bytes, whiteouts: Whiteouts) -> dict[bytes, bytes]:
        return attributes.from_disk(attributes.read(attributes.proc_path(directory, name)), whiteouts)


def _status(directory: int, name: bytes) -> os.stat_result | None:
    """Return the status of a name; None where it is not."""
    try:
        return os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _told(status: os.stat_result) -> tuple[int, ...]:
    """Return what stat(2) tells of a file that a layer keeps; the length of a directory is the file system's affair."""
    size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
    device = status.st_rdev if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode) else 0
    return status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns, size, device


def _size(status: os.stat_result) -> int:
    """Return the length of a regular file, and nothing for others."""
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def _contents_differ(lower: int, upper: int, name: bytes) -> bool:
    """Compare two regular files of the same length byte for byte."""
    with ExitStack() as stack:
        one, other = (_opened(stack, directory, name) for directory in (lower, upper))
        while True:
            piece = os.read(one, _PIECE)
            if piece != os.read(other, _PIECE):
                return True
            if not piece:
                return False


def _opened(stack: ExitStack, directory: int, name: bytes) -> int:
    fd = os.open(name, _READ, dir_fd=directory)
    stack.callback(os.close, fd)
    return fd

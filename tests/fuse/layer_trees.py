"""Layers in overlay's format as values: drawn by Hypothesis, written to disk, and merged by a model in memory."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from hypothesis import strategies as st

from layerfs_fuse.attributes import ATTRIBUTES
from layerfs_fuse.index.markers import Marks
from layerfs_fuse.index.reader import Index

NAMES = (b"a", b"b", b"c.so.1", b"\xff\xfe", b"eight888", b"n" * 255)
_NODES = {
    "empty": (stat.S_IFREG, 0),
    "xwhiteout": (stat.S_IFREG, 0),
    "whiteout": (stat.S_IFCHR, 0),
    "fifo": (stat.S_IFIFO, 0),
    "socket": (stat.S_IFSOCK, 0),
    "block device": (stat.S_IFBLK, os.makedev(259, 0x12345)),
}


@dataclass(frozen=True, slots=True)
class Leaf:
    """What is no directory. ``group`` other than 0 is shared by the names of one inode."""

    kind: str
    mode: int = 0o644
    xattr: bool = False
    group: int = 0


@dataclass(frozen=True, slots=True)
class Tree:
    """A directory of a layer; ``opaque`` is the value of its mark."""

    children: Mapping[bytes, Leaf | Tree] = field(default_factory=dict[bytes, "Leaf | Tree"])
    mode: int = 0o755
    xattr: bool = False
    opaque: bytes = b""


def layers(*, privileged: bool = False) -> st.SearchStrategy[Tree]:
    """Draw a layer; ``privileged`` brings device nodes."""
    kinds = ["file", "empty", "symlink", "fifo", "socket", "whiteout", "whiteout", "xwhiteout"]
    if privileged:
        kinds.append("block device")
    plain = st.builds(
        Leaf,
        kind=st.sampled_from(kinds),
        mode=st.sampled_from([0o600, 0o644, 0o755]),
        xattr=st.booleans(),
        group=st.sampled_from([0, 0, 0, 1, 2]),
    )
    names = st.sampled_from(NAMES)

    def directories(below: st.SearchStrategy[Leaf | Tree]) -> st.SearchStrategy[Leaf | Tree]:
        marks = st.sampled_from([b"", b"", b"y", b"x"])
        return st.builds(
            Tree, st.dictionaries(names, below, max_size=5), st.sampled_from([0o700, 0o755]), st.booleans(), marks
        )

    nodes = st.recursive(plain, directories, max_leaves=20)
    return st.builds(Tree, st.dictionaries(names, nodes, max_size=6))


def write(tree: Tree, place: Path, marks: Marks) -> None:
    """Make a layer's directory of a new or an empty directory."""
    place.mkdir(exist_ok=True)
    _fill(tree, os.fsencode(place), marks, {})


def _fill(tree: Tree, path: bytes, marks: Marks, groups: dict[tuple[int, str], bytes]) -> None:
    for name, node in tree.children.items():
        inside = path + b"/" + name
        if isinstance(node, Tree):
            os.mkdir(inside)
            _fill(node, inside, marks, groups)
        else:
            _make(node, inside, marks, groups)
    if tree.opaque:
        os.setxattr(path, marks.opaque, tree.opaque)
    if tree.xattr:
        os.setxattr(path, marks.prefix.partition(b".")[0] + b".layerfs", b"of a directory")
    os.chmod(path, tree.mode)


def _make(leaf: Leaf, path: bytes, marks: Marks, groups: dict[tuple[int, str], bytes]) -> None:
    key = (leaf.group, leaf.kind)
    if leaf.group and leaf.kind != "whiteout":
        if key in groups:
            os.link(groups[key], path, follow_symlinks=False)
            return
        groups[key] = path
    if leaf.kind == "file":
        Path(os.fsdecode(path)).write_bytes(path)
    elif leaf.kind == "symlink":
        os.symlink(path[-40:], path)
        return
    else:
        kind, device = _NODES[leaf.kind]
        os.mknod(path, kind | 0o600, device)
    if leaf.kind == "whiteout":
        return
    os.chmod(path, leaf.mode)
    if leaf.kind == "xwhiteout":
        os.setxattr(path, marks.whiteout, b"")
    elif leaf.xattr and leaf.kind in {"file", "empty"}:
        os.setxattr(path, b"user.layerfs", b"of a file")
        os.setxattr(path, marks.stored(marks.opaque), b"of a nested overlay")


# -- what is seen ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seen:
    """What anybody sees of a file, without the access time, which looking changes.

    Directories have neither size, inode nor blocks, which overlays make up.
    """

    mode: int
    nlink: int
    uid: int
    gid: int
    times: tuple[int, int]
    rdev: int = 0
    size: int = 0
    blocks: int = 0
    ino: int = 0
    target: bytes = b""
    xattrs: bool = False


def seen_in(root: bytes, private: bytes = b"\0") -> dict[bytes, Seen]:
    """Look at a tree that is mounted or lies on disk. Link counts are those that its own names make up."""
    found: dict[bytes, Seen] = {b"": _seen(root, private)}
    pending = [b""]
    while pending:
        above = pending.pop()
        for name in os.listdir(os.path.join(root, above)):
            path = os.path.join(above, name)
            try:
                found[path] = _seen(os.path.join(root, path), private)
            except FileNotFoundError:
                continue  # a whiteout that the kernel lists, and shows nothing behind
            if stat.S_ISDIR(found[path].mode):
                pending.append(path)
    return with_links(found)


def _seen(path: bytes, private: bytes) -> Seen:
    status = os.lstat(path)
    names = [os.fsencode(name) for name in os.listxattr(path, follow_symlinks=False)]
    xattrs = any(not name.startswith(private) or name.startswith(private + b"overlay.") for name in names)
    times = (status.st_mtime_ns, status.st_ctime_ns)
    seen = Seen(status.st_mode, 0, status.st_uid, status.st_gid, times, xattrs=xattrs)
    if stat.S_ISDIR(status.st_mode):
        return seen
    return replace(
        seen,
        rdev=status.st_rdev & 0xFFFFFFFF,
        size=status.st_size,
        blocks=status.st_blocks,
        ino=status.st_ino,
        target=os.readlink(path) if stat.S_ISLNK(status.st_mode) else b"",
    )


def with_links(found: Mapping[bytes, Seen]) -> dict[bytes, Seen]:
    """Count the names of each inode, and the directories in each."""
    names: dict[int, int] = {}
    below: dict[bytes, int] = {}
    for path, one in found.items():
        names[one.ino] = names.get(one.ino, 0) + 1
        if stat.S_ISDIR(one.mode) and path:
            above = path.rpartition(b"/")[0]
            below[above] = below.get(above, 0) + 1
    return {
        path: replace(one, nlink=2 + below.get(path, 0) if stat.S_ISDIR(one.mode) else names[one.ino])
        for path, one in found.items()
    }


def seen_by(index: Index) -> dict[bytes, Seen]:
    """Look at everything that an index shows, and check on the way that it answers every question alike."""
    found: dict[bytes, Seen] = {}
    pending = [1]
    while pending:
        row = pending.pop()
        path = index.path(row)
        fields = ATTRIBUTES.unpack(index.attributes(row))
        ino, size, blocks, _, mtime, ctime, _, mtime_ns, ctime_ns, mode, nlink, uid, gid, rdev, _, _ = fields
        times = (mtime * 10**9 + mtime_ns, ctime * 10**9 + ctime_ns)
        assert (mode, ino) == (index.mode(row), index.ino(row))
        assert index.is_directory(row) == stat.S_ISDIR(mode)
        if index.is_directory(row):
            found[path] = Seen(mode, nlink, uid, gid, times, xattrs=index.has_xattrs(row))
            _check_directory(index, row)
            pending.extend(index.children(row))
            continue
        assert not index.children(row)
        target = index.target(row) if stat.S_ISLNK(mode) else b""
        found[path] = Seen(mode, nlink, uid, gid, times, rdev, size, blocks, ino, target, index.has_xattrs(row))
        _check_links(index, row, nlink)
    assert len(found) == index.living <= index.count
    return found


def _check_directory(index: Index, row: int) -> None:
    names = [index.name(child) for child in index.children(row)]
    assert names == sorted(set(names))
    for child, name in zip(index.children(row), names, strict=True):
        assert index.child(row, name) == child
        assert index.parent(child) == row
        assert index.child(row, name + b"~") == 0
        assert index.child(row, name[:-1]) == (index.children(row)[names.index(name[:-1])] if name[:-1] in names else 0)


def _check_links(index: Index, row: int, nlink: int) -> None:
    aliases = index.aliases(row)
    assert len(aliases) == nlink
    assert row in aliases
    assert index.node(row) == min(aliases)
    assert index.linked(row) == (nlink > 1)
    assert {index.attributes(alias) for alias in aliases} == {index.attributes(row)}
    assert int.from_bytes(index.entry(row)[:8], "little") == min(aliases)

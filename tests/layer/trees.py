"""Directory trees for tests: made from a description, and described again in full."""

from __future__ import annotations

import hashlib
import io
import os
import socket
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from layerfs.contract import LayerRoot, Whiteouts
from layerfs.layer.changes import changes
from layerfs.layer.compression import Compression
from layerfs.layer.write import write_layer


@dataclass(frozen=True)
class Node:
    """One file to make; ``kind`` is file, dir, link, hard, fifo, char or socket, ``target`` that of both links."""

    kind: str
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime: int = 1_700_000_000_123_456_789
    content: bytes = b""
    target: bytes = b""
    device: int = os.makedev(1, 3)
    xattrs: tuple[tuple[bytes, bytes], ...] = ()


_BLOCK = 1 << 16

Spec = Mapping[bytes, Node]


@dataclass(frozen=True)
class Seen:
    """Everything about one file that a layer keeps; ``names`` are all the names of a file with several."""

    kind: str
    mode: int
    owner: tuple[int, int]
    mtime: int
    content: str = ""
    target: bytes = b""
    device: int = 0
    xattrs: tuple[tuple[str, bytes], ...] = ()
    names: tuple[bytes, ...] = ()
    holes: bool = field(default=False, compare=False)


def make(root: Path, spec: Spec) -> Path:
    """Make the files of a description, the directories' times last."""
    root.mkdir(exist_ok=True)
    root.chmod(0o755)
    base = os.fsencode(root)
    for name, node in sorted(spec.items()):
        if node.kind != "hard":
            _make_one(base + b"/" + name, node)
    for name, node in sorted(spec.items()):
        if node.kind == "hard":
            os.link(base + b"/" + node.target, base + b"/" + name, follow_symlinks=False)
    for name, node in sorted(spec.items(), reverse=True):
        if node.kind != "hard":
            os.utime(base + b"/" + name, ns=(node.mtime, node.mtime), follow_symlinks=False)
    if b"." not in spec:
        os.utime(base, ns=(0, 0))
    return root


def _make_one(path: bytes, node: Node) -> None:
    if node.kind == "file":
        Path(os.fsdecode(path)).write_bytes(node.content)
    elif node.kind == "dir":
        os.makedirs(path, exist_ok=True)
    elif node.kind == "link":
        os.symlink(node.target, path)
    elif node.kind == "fifo":
        os.mkfifo(path)
    elif node.kind == "char":
        os.mknod(path, stat.S_IFCHR, node.device)
    elif node.kind == "socket":
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path)
    os.chown(path, node.uid, node.gid, follow_symlinks=False)
    if node.kind != "link":
        for name, value in node.xattrs:
            os.setxattr(path, name, value)
        os.chmod(path, node.mode)


def layer_of(before: Path | None, after: Path) -> bytes:
    """Return the layer that turns one tree into the other."""
    out = io.BytesIO()
    listed = changes(before, after, verify_content=True)
    write_layer(listed, LayerRoot(after, Whiteouts.REMOVE), out, compression=Compression.NONE)
    return out.getvalue()


def describe(root: Path) -> dict[bytes, Seen]:
    """Describe every file below a directory, and the directory itself as b"."."""
    found: dict[bytes, Seen] = {}
    inodes: dict[tuple[int, int], list[bytes]] = {}
    base = os.fsencode(root)
    todo = [b"."]
    while todo:
        name = todo.pop()
        path = base + b"/" + name
        status = os.lstat(path)
        found[name] = _describe_one(path, status)
        if stat.S_ISDIR(status.st_mode):
            todo += [below if name == b"." else name + b"/" + below for below in os.listdir(path)]
        else:
            inodes.setdefault((status.st_dev, status.st_ino), []).append(name)
    for names in inodes.values():
        if len(names) > 1:
            for name in names:
                found[name] = replace(found[name], names=tuple(sorted(names)))
    return found


def _describe_one(path: bytes, status: os.stat_result) -> Seen:
    mode = status.st_mode
    kinds = {
        stat.S_IFREG: "file",
        stat.S_IFDIR: "dir",
        stat.S_IFLNK: "link",
        stat.S_IFIFO: "fifo",
        stat.S_IFCHR: "char",
        stat.S_IFBLK: "block",
        stat.S_IFSOCK: "socket",
    }
    names = sorted(os.listxattr(path, follow_symlinks=False))
    xattrs = tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in names)
    return Seen(
        kind=kinds[stat.S_IFMT(mode)],
        mode=stat.S_IMODE(mode),
        owner=(status.st_uid, status.st_gid),
        mtime=status.st_mtime_ns,
        content=_content(path, status) if stat.S_ISREG(mode) else "",
        target=os.readlink(path) if stat.S_ISLNK(mode) else b"",
        device=status.st_rdev if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else 0,
        xattrs=xattrs,
        holes=stat.S_ISREG(mode) and status.st_blocks * 512 < status.st_size,
    )


def _content(path: bytes, status: os.stat_result) -> str:
    """Digest a file's length and its blocks that are not all zeros: some have holes of many GiB."""
    digest = hashlib.sha256()
    fd = os.open(path, os.O_RDONLY)
    try:
        position = 0
        while position < status.st_size and (start := _data(fd, position)) is not None:
            position = start - start % _BLOCK
            block = os.pread(fd, _BLOCK, position)
            if block.strip(b"\0"):
                digest.update(b"%d:" % position + block.rstrip(b"\0"))
            position += _BLOCK
    finally:
        os.close(fd)
    return f"{status.st_size}:{digest.hexdigest()}"


def _data(fd: int, position: int) -> int | None:
    try:
        return os.lseek(fd, position, os.SEEK_DATA)
    except OSError:
        return None


def names(root: Path) -> list[str]:
    """List every path below a directory."""
    return sorted(os.fsdecode(name) for name in describe(root) if name != b".")


def difference(one: Mapping[bytes, Seen], other: Mapping[bytes, Seen]) -> dict[bytes, tuple[Seen | None, Seen | None]]:
    """Say where two descriptions differ; empty where they are equal."""
    return {
        name: (one.get(name), other.get(name)) for name in one.keys() | other.keys() if one.get(name) != other.get(name)
    }

"""Layers with everything that makes the comparison of a layer with its blob hard."""

from __future__ import annotations

import io
import tarfile

TIME = 1_700_000_000


def base() -> bytes:
    """Return a base layer: hard links, a sparse file, attributes, what is listed twice, directories never listed."""
    return _tar(
        [
            _directory("etc"),
            _file("etc/issue", b"first of two\n"),
            _file("etc/issue", b"the second counts\n"),
            _file("etc/passwd", b"root:x:0:0\n"),
            _link("etc/passwd-", "etc/passwd"),
            _file("usr/lib/never/listed", b"x"),
            _directory("var"),
            _file("var/zeros", bytes(300_000)),
            _file("var/big", bytes(range(256)) * 1000),
            _sparse("var/sparse", 1 << 23, b"end"),
            _file("var/empty", b""),
            _symlink("lib", "usr/lib"),
            _file("bin/tool", b"#!/bin/sh\n", mode=0o4755, xattrs={"user.note": "kept"}),
            _directory("gone"),
            _file("gone/file", b"gone"),
            _directory("hidden"),
            _file("hidden/below", b"below"),
        ]
    )


def top() -> bytes:
    """Return a layer on top: whiteouts, an opaque directory, a hard link to a lower file, files through a link."""
    return _tar(
        [
            _link("etc/more-passwd", "etc/passwd"),
            _file("var/.wh.big", b""),
            _file(".wh.gone", b""),
            _directory("hidden", mode=0o700),
            _file("hidden/.wh..wh..opq", b""),
            _file("hidden/own", b"own"),
            _file("lib/through", b"through a link"),
            _file("usr/lib/never/another", b"in a directory that is not listed"),
        ]
    )


_Member = tuple[tarfile.TarInfo, bytes]


def _member(name: str, mode: int) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.mode, member.mtime = mode, TIME
    return member


def _file(name: str, content: bytes, mode: int = 0o644, xattrs: dict[str, str] | None = None) -> _Member:
    member = _member(name, mode)
    member.size = len(content)
    member.pax_headers = {f"SCHILY.xattr.{key}": value for key, value in (xattrs or {}).items()}
    return member, content


def _directory(name: str, mode: int = 0o755) -> _Member:
    member = _member(name, mode)
    member.type = tarfile.DIRTYPE
    return member, b""


def _link(name: str, target: str) -> _Member:
    member = _member(name, 0o644)
    member.type, member.linkname = tarfile.LNKTYPE, target
    return member, b""


def _symlink(name: str, target: str) -> _Member:
    member = _member(name, 0o777)
    member.type, member.linkname = tarfile.SYMTYPE, target
    return member, b""


def _sparse(name: str, length: int, end: bytes) -> _Member:
    """Return a file of format 0.1 that is a hole but for its last bytes."""
    member, content = _file(name, end)
    member.pax_headers = {
        "GNU.sparse.size": str(length),
        "GNU.sparse.map": f"{length - len(end)},{len(end)}",
        "GNU.sparse.numblocks": "1",
    }
    return member, content


def _tar(members: list[_Member]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for member, content in members:
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()

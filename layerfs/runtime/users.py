"""Who runs in a container: a user of its image, looked up in the image's own passwd(5) and group(5).

Both files come from the image, so they are hostile: they are opened below the root whatever links stand in the way,
must be regular files, and are read up to a limit.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

from layerfs.errors import NotFound
from layerfs.kernel import syscalls

_MOST = 1 << 20
"""Bytes of passwd or group that are read: some 20,000 users."""
_LARGEST_ID = (1 << 32) - 2
_ROOT = 0


@dataclass(frozen=True, slots=True)
class Account:
    """Whose ids a process has, the groups that it is also in, and its home directory."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


@dataclass(frozen=True, slots=True)
class _User:
    name: str
    uid: int
    gid: int
    home: str


def find_account(root_fd: int, user: str) -> Account:
    """Return the account of "", "user", "uid", "user:group", "uid:gid" and mixtures in the tree of ``root_fd``.

    A number needs no line in passwd; its group is 0 then. Raise `NotFound` for a name that the tree does not have.
    Source: image-spec config.md, ``User``.
    """
    who, _, group = user.partition(":")
    found = _find_user(root_fd, who or str(_ROOT))
    if group:
        return Account(found.uid, _find_group(root_fd, group), (), found.home)
    return Account(found.uid, found.gid, tuple(_memberships(root_fd, found)), found.home)


def _find_user(root_fd: int, who: str) -> _User:
    number = _number(who)
    for user in _users(root_fd):
        if user.name == who or user.uid == number:
            return user
    if number is None:
        raise NotFound(f"the clone has no user {who!r}", hint="its /etc/passwd lists them; a number needs no entry")
    return _User("", number, _ROOT, "/")


def _find_group(root_fd: int, group: str) -> int:
    number = _number(group)
    if number is not None:
        return number
    for name, gid, _ in _groups(root_fd):
        if name == group:
            return gid
    raise NotFound(f"the clone has no group {group!r}", hint="its /etc/group lists them; a number needs no entry")


def _memberships(root_fd: int, user: _User) -> Iterator[int]:
    return (gid for _, gid, members in _groups(root_fd) if user.name and user.name in members and gid != user.gid)


def _users(root_fd: int) -> Iterator[_User]:
    for line in _lines(root_fd, b"etc/passwd"):
        match line.split(":"):
            case [name, _, uid, gid, _, home, *_] if (user := _number(uid)) is not None:
                yield _User(name, user, _number(gid) or _ROOT, home if home.startswith("/") else "/")


def _groups(root_fd: int) -> Iterator[tuple[str, int, list[str]]]:
    for line in _lines(root_fd, b"etc/group"):
        match line.split(":"):
            case [name, _, gid, members, *_] if (number := _number(gid)) is not None:
                yield name, number, members.split(",")


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and int(text[:11]) <= _LARGEST_ID else None


def _lines(root_fd: int, path: bytes) -> list[str]:
    """Return the lines of a small file of the tree; none where it is missing or no regular file."""
    try:
        found = syscalls.openat2(root_fd, path, os.O_PATH | os.O_CLOEXEC, resolve=syscalls.RESOLVE_IN_ROOT)
    except OSError:
        return []
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):  # opening a device or a FIFO could do anything
            return []
        with open(f"/proc/self/fd/{found}", "rb") as file:
            return file.read(_MOST).decode("utf-8", "replace").splitlines()
    finally:
        os.close(found)

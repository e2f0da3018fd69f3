"""Users of a root that somebody else made."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from layerfs.errors import NotFound
from layerfs.runtime.users import Account, find_account

USERS = """\
root:x:0:0:root:/root:/bin/sh
web:x:33:34:www:/var/www:/bin/false
odd:x:-1:0::/:
short:x:1
far:x:5:6::x:
"""
GROUPS = """\
root:x:0:
www:x:34:web
logs:x:40:other,web
broken
staff:x:50:
"""


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    """Give the descriptor of a tree with /etc/passwd and /etc/group."""
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/passwd").write_text(USERS)
    (tmp_path / "etc/group").write_text(GROUPS)
    fd = os.open(tmp_path, os.O_PATH)
    yield fd
    os.close(fd)


@pytest.mark.parametrize(
    ("user", "account"),
    [
        ("", Account(0, 0, (), "/root")),
        ("web", Account(33, 34, (40,), "/var/www")),
        ("33", Account(33, 34, (40,), "/var/www")),
        ("web:staff", Account(33, 50, (), "/var/www")),
        ("web:7", Account(33, 7, (), "/var/www")),
        ("1234", Account(1234, 0, (), "/")),
        ("1234:staff", Account(1234, 50, (), "/")),
        ("far", Account(5, 6, (), "/")),
        (":staff", Account(0, 50, (), "/root")),
    ],
)
def test_users(root: int, user: str, account: Account) -> None:
    assert find_account(root, user) == account


@pytest.mark.parametrize("user", ["nobody", "odd", "short", "web:nobody", "-1", "4294967295", "99999999999999999999"])
def test_users_that_are_not_there(root: int, user: str) -> None:
    with pytest.raises(NotFound, match="the clone has no"):
        find_account(root, user)


def test_a_tree_without_users(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_PATH)
    assert find_account(fd, "") == Account(0, 0, (), "/")
    os.close(fd)


def test_files_that_lead_elsewhere_or_are_none(root: int, tmp_path: Path) -> None:
    outside = tmp_path.parent / "passwd"
    outside.write_text("spy:x:1:1::/:\n")
    place = tmp_path / "etc/passwd"
    for target in (str(outside), "../../passwd", "/proc/self/environ"):
        place.unlink()
        place.symlink_to(target)
        with pytest.raises(NotFound):
            find_account(root, "spy")
    place.unlink()
    os.mkfifo(place)
    with pytest.raises(NotFound):
        find_account(root, "web")

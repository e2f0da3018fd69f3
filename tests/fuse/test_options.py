"""Mount options of a union: overlay's, fuse-overlayfs's and ours."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerfs.contract import Whiteouts
from layerfs.errors import InvalidArgument, LayerfsError, Unsupported
from layerfs_fuse.ids import AS_THEY_ARE, OVERFLOW, IdShift, Part, parse_shift
from layerfs_fuse.options import StackOptions, parse, split

A = (Path("/a"),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lowerdir=/b:/a", StackOptions(lowers=(Path("/a"), Path("/b")))),
        (r"lowerdir=/a\:b:/c\\d", StackOptions(lowers=(Path("/c\\d"), Path("/a:b")))),
        (r"lowerdir=/a\,b", StackOptions(lowers=(Path("/a,b"),))),
        ("lowerdir=/a,upperdir=/u,workdir=/w", StackOptions(lowers=A, upper=Path("/u"), work=Path("/w"))),
        ("lowerdir=/a,volatile,allow_other", StackOptions(lowers=A, volatile=True, allow_other=True)),
        ("lowerdir=/a,ro,rw", StackOptions(lowers=A)),
        ("lowerdir=/a,ro,nosuid", StackOptions(lowers=A, flags=frozenset({"ro", "nosuid"}))),
        ("lowerdir=/a,fsync=0", StackOptions(lowers=A, volatile=True)),
        ("lowerdir=/a,write=redirect", StackOptions(lowers=A, redirect=True)),
        ("lowerdir=/a,write=redirect,redirect_from=1", StackOptions(lowers=A, redirect=True, redirect_from=1)),
        ("lowerdir=/a,write=redirect,write=copy", StackOptions(lowers=A)),
        ("lowerdir=/a,userxattr", StackOptions(lowers=A, marks=Whiteouts.OVERLAY_USER)),
        ("lowerdir=/a,squash_to_root", StackOptions(lowers=A, users=IdShift(squash=0), groups=IdShift(squash=0))),
        ("lowerdir=/a,squash_to_uid=7", StackOptions(lowers=A, users=IdShift(squash=7))),
        (
            "lowerdir=/a,uidmapping=0:1000:1:1:100000:65536",
            StackOptions(lowers=A, users=IdShift((Part(0, 1000, 1), Part(1, 100000, 65536)))),
        ),
        # What others say and what makes no difference here.
        ("lowerdir=/a,xino=auto,index=off,metacopy=off,redirect_dir=nofollow,x-mine=1", StackOptions(lowers=A)),
        ("lowerdir=/a,noacl,nopassthrough", StackOptions(lowers=A, acl=False, passthrough=False)),
        ("lowerdir=/a,index=/i,log=/l", StackOptions(lowers=A, index=Path("/i"), log=Path("/l"))),
    ],
)
def test_options(text: str, expected: StackOptions) -> None:
    assert parse(split(text)) == expected


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("", InvalidArgument, "a union of nothing"),
        ("upperdir=/u", InvalidArgument, "go together"),
        ("lowerdir=/a::/b", InvalidArgument, "empty path"),
        ("lowerdir=/a,wrote=redirect", InvalidArgument, "no option of a union"),
        ("lowerdir=/a,write=sometimes", InvalidArgument, "no way to write"),
        ("lowerdir=/a,redirect_from=many", InvalidArgument, "is no number"),
        ("lowerdir=/a,squash_to_uid=-1", InvalidArgument, "is no id"),
        ("lowerdir=/a,squash_to_uid=4294967295", InvalidArgument, "is no id"),
        ("lowerdir=/a,uidmapping=0:1", InvalidArgument, "no id mapping"),
        ("lowerdir=/a,redirect_dir=on", Unsupported, "has no"),
        ("lowerdir=/a,index=on", Unsupported, "has no"),
        ("lowerdir=/a,metacopy=on", Unsupported, "has no"),
        ("lowerdir=/a,xattr_permissions=2", Unsupported, "has no"),
        ("lowerdir=/a,context=system_u:object_r:x:s0", Unsupported, "no labels"),
    ],
)
def test_options_that_are_refused(text: str, error: type[LayerfsError], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        parse(split(text))
    assert caught.value.hint or error is not InvalidArgument or "is no" in words or "empty" in words


def test_a_read_only_union() -> None:
    assert parse(["lowerdir=/a"]).read_only
    assert parse(["lowerdir=/a", "upperdir=/u", "workdir=/w", "ro"]).read_only
    assert not parse(["lowerdir=/a", "upperdir=/u", "workdir=/w"]).read_only


def test_paths_are_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse(["lowerdir=a"]).lowers == (tmp_path / "a",)


def test_ids_are_moved_there_and_back() -> None:
    shift = parse_shift("0:1000:1:1:100000:10")
    shown, disk = shift.to_shown(), shift.to_disk()
    assert [shown(number) for number in (1000, 100000, 100009, 100010, 0)] == [0, 1, 10, OVERFLOW, OVERFLOW]
    assert [disk(number) for number in (0, 1, 10, 11)] == [1000, 100000, 100009, OVERFLOW]
    assert not shift.identity


def test_ids_are_squashed() -> None:
    shift = IdShift(squash=5)
    assert (shift.to_shown()(0), shift.to_shown()(77), shift.to_disk()(5)) == (5, 5, -1)


@given(st.integers(0, 1 << 32))
def test_ids_stay_as_they_are(number: int) -> None:
    assert AS_THEY_ARE.identity
    assert AS_THEY_ARE.to_shown()(number) == AS_THEY_ARE.to_disk()(number) == number

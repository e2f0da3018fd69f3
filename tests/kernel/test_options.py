"""Mount options as values: pure functions against tables, and against each other."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from layerfs.errors import InvalidArgument
from layerfs.kernel import syscalls
from layerfs.kernel.options import (
    escape_path,
    legacy_data,
    overlay_options,
    parse,
    parse_overlay,
    split_lowerdirs,
    unescape_path,
)

PATHS = st.text(st.characters(exclude_characters="\0"), min_size=1)


@pytest.mark.parametrize(
    ("path", "escaped"),
    [
        ("/a/b", "/a/b"),
        ("/a:b", "/a\\:b"),
        ("/a\\b", "/a\\\\b"),
        ("/a\\:b", "/a\\\\\\:b"),
        ("/a,b c", "/a,b c"),
        ("/\udcff", "/\udcff"),
        ("/two\nlines", "/two\nlines"),
    ],
)
def test_a_path_is_escaped_as_the_kernel_reads_it(path: str, escaped: str) -> None:
    assert escape_path(path) == escaped
    assert unescape_path(escaped) == path


@pytest.mark.parametrize(
    ("option", "lowers"),
    [
        ("lowerdir=/a", ("/a",)),
        ("/a:/b:/c", ("/a", "/b", "/c")),
        ("lowerdir=/a\\:b:/c", ("/a:b", "/c")),
        ("lowerdir=/a\\\\:/c", ("/a\\", "/c")),
        ("lowerdir=/a\nb:/c", ("/a\nb", "/c")),
        ("lowerdir=/a\\:", ("/a:",)),
        ("lowerdir=/a\\:/b\\", ("/a:/b\\",)),
    ],
)
def test_lowers_are_split(option: str, lowers: tuple[str, ...]) -> None:
    assert split_lowerdirs(option) == lowers


@pytest.mark.parametrize("option", ["lowerdir=", "", ":", "/a:", ":/a", "/a::/b", "/a:/b:"])
def test_an_empty_lower_is_refused(option: str) -> None:
    with pytest.raises(InvalidArgument, match="empty path"):
        split_lowerdirs(option)


@given(st.lists(PATHS, min_size=1))
def test_every_list_of_lowers_comes_back(lowers: list[str]) -> None:
    assert split_lowerdirs(overlay_options(lowers)[0]) == tuple(lowers)


@given(st.lists(PATHS, min_size=1), PATHS, PATHS)
def test_every_overlay_comes_back(lowers: list[str], upper: str, work: str) -> None:
    overlay = parse_overlay(parse(overlay_options(lowers, upper, work)).data)
    assert (overlay.lowers, overlay.upper, overlay.work) == (tuple(lowers), upper, work)


def test_what_ties_an_upper_to_its_lowers_is_off() -> None:
    options = overlay_options([Path("/l")], Path("/u"), Path("/w"), userxattr=True, volatile=True)
    assert options == (
        "lowerdir=/l",
        "upperdir=/u",
        "workdir=/w",
        "index=off",
        "metacopy=off",
        "redirect_dir=nofollow",
        "userxattr",
        "volatile",
    )


def test_without_an_upper_it_is_read_only() -> None:
    assert "ro" in overlay_options(["/a", "/b"])


def test_upper_and_work_go_together() -> None:
    with pytest.raises(InvalidArgument, match="together"):
        overlay_options(["/a"], "/u")
    with pytest.raises(InvalidArgument, match="together"):
        overlay_options(["/a"], work="/w")


def test_an_overlay_without_lowers_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="lowerdir"):
        parse_overlay(("upperdir=/u",))


@pytest.mark.parametrize(
    ("options", "attributes", "flags", "superblock", "data"),
    [
        ((), 0, 0, (), ()),
        (("rw", "suid", "defaults"), 0, 0, (), ()),
        (("ro",), syscalls.MOUNT_ATTR_RDONLY, syscalls.MS_RDONLY, ("ro",), ()),
        (("ro", "rw"), 0, 0, (), ()),
        (("rw", "ro"), syscalls.MOUNT_ATTR_RDONLY, syscalls.MS_RDONLY, ("ro",), ()),
        (
            ("nodev", "nosuid", "noexec"),
            syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NOEXEC,
            syscalls.MS_NODEV | syscalls.MS_NOSUID | syscalls.MS_NOEXEC,
            (),
            (),
        ),
        (("noatime",), syscalls.MOUNT_ATTR_NOATIME, syscalls.MS_NOATIME, (), ()),
        (("noatime", "strictatime"), syscalls.MOUNT_ATTR_STRICTATIME, syscalls.MS_STRICTATIME, (), ()),
        (("noatime", "relatime"), 0, syscalls.MS_RELATIME, (), ()),
        (("noexec", "exec"), 0, 0, (), ()),
        (("sync", "lazytime"), 0, syscalls.MS_SYNCHRONOUS | syscalls.MS_LAZYTIME, ("sync", "lazytime"), ()),
        (("subvol=x", "nodatacow", "x-systemd.automount"), 0, 0, (), ("subvol=x", "nodatacow")),
    ],
)
def test_options_are_told_apart(
    options: tuple[str, ...], attributes: int, flags: int, superblock: tuple[str, ...], data: tuple[str, ...]
) -> None:
    parsed = parse(options)
    assert (parsed.attributes, parsed.flags, parsed.superblock, parsed.data) == (attributes, flags, superblock, data)


def test_binds_are_known() -> None:
    assert parse(("bind", "ro")).bind
    assert not parse(("bind", "ro")).recursive
    assert parse(("rbind",)).recursive
    assert not parse(("ro",)).bind


def test_a_comma_is_escaped_for_the_option_string() -> None:
    overlay = parse_overlay(("lowerdir=/a,b\\:c", "upperdir=/u,v", "workdir=/w", "userxattr"))
    assert legacy_data(overlay, overlay.lowers) == "lowerdir=/a\\,b\\:c,upperdir=/u\\,v,workdir=/w,userxattr"

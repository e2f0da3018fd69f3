"""What is agreed on in INIT."""

from __future__ import annotations

import errno

import pytest

from layerfs_fuse.protocol import INIT_IN, INIT_IN_FLAGS2, INIT_OUT, Init
from layerfs_fuse.session import MAX_WRITE, Offer, Wishes, negotiate

EVERYTHING = Init((1 << 43) - 1)


def offer(flags: Init = EVERYTHING, minor: int = 45) -> Offer:
    return Offer(7, minor, 131072, flags)


def body(major: int, minor: int, flags: Init) -> memoryview:
    low, high = int(flags) & 0xFFFFFFFF, int(flags) >> 32
    return memoryview(INIT_IN.pack(major, minor, 131072, low) + INIT_IN_FLAGS2.pack(high) + bytes(44))


def test_an_offer_is_read_with_its_upper_flags() -> None:
    assert Offer.parse(body(7, 45, EVERYTHING)) == offer()


def test_upper_flags_count_only_where_announced() -> None:
    assert Offer.parse(body(7, 34, Init.PASSTHROUGH | Init.BIG_WRITES)).flags == Init.BIG_WRITES


@pytest.mark.parametrize(("major", "minor"), [(6, 99), (7, 30)])
def test_older_kernels_are_refused(major: int, minor: int) -> None:
    with pytest.raises(OSError, match=r"older than 7\.31") as raised:
        Offer.parse(body(major, minor, EVERYTHING))
    assert raised.value.errno == errno.EPROTO


def test_passthrough_excludes_what_the_kernel_does_not_allow_beside_it() -> None:
    session = negotiate(offer(), Wishes(passthrough=True))
    assert session.passthrough
    assert not session.writeback
    assert Init.NO_OPEN_SUPPORT not in session.flags
    assert Init.ATOMIC_O_TRUNC in session.flags


def test_without_passthrough_there_is_no_open() -> None:
    session = negotiate(offer(), Wishes(passthrough=False))
    assert not session.passthrough
    assert session.writeback
    assert Init.NO_OPEN_SUPPORT in session.flags
    # With it the kernel would leave the truncation to an OPEN that never comes.
    assert Init.ATOMIC_O_TRUNC not in session.flags


def test_a_wish_that_the_kernel_cannot_grant_is_dropped() -> None:
    session = negotiate(offer(EVERYTHING & ~Init.PASSTHROUGH), Wishes(passthrough=True))
    assert not session.passthrough
    assert session.writeback


def test_wishes_can_be_withheld() -> None:
    session = negotiate(offer(), Wishes(passthrough=False, writeback=False, acl=False))
    assert not session.flags & (Init.WRITEBACK_CACHE | Init.POSIX_ACL)


def test_locks_are_never_taken_for_the_kernel_keeps_them() -> None:
    for passthrough in (False, True):
        session = negotiate(offer(), Wishes(passthrough=passthrough))
        assert not session.flags & (Init.POSIX_LOCKS | Init.FLOCK_LOCKS)


@pytest.mark.parametrize("minor", [31, 40, 45, 50])
def test_the_reply_speaks_the_lower_version(minor: int) -> None:
    session = negotiate(offer(minor=minor), Wishes(passthrough=False))
    fields = INIT_OUT.unpack(session.reply())
    assert fields[:3] == (7, min(minor, 45), 131072)
    assert fields[6] == MAX_WRITE
    assert fields[8] * 4096 == MAX_WRITE


def test_only_passthrough_names_a_stacking_depth() -> None:
    depths = [INIT_OUT.unpack(negotiate(offer(), Wishes(passthrough=p)).reply())[11] for p in (False, True)]
    assert depths == [0, 1]

"""The numbers and structures of the FUSE protocol, against what include/uapi/linux/fuse.h lays down."""

from __future__ import annotations

import pytest

from layerfs_fuse import protocol
from layerfs_fuse.protocol import Init, Opcode, SetAttr

# sizeof() of each structure, as C has it.
SIZES = {
    "HEADER": 40,
    "REPLY": 16,
    "INIT_IN": 16,
    "INIT_OUT": 64,
    "FORGET_IN": 8,
    "BATCH_FORGET_IN": 8,
    "FORGET_ONE": 16,
    "GETATTR_IN": 16,
    "ATTR_OUT": 16,
    "SETATTR_IN": 88,
    "STATX_IN": 24,
    "STATX_OUT": 288,
    "MKNOD_IN": 16,
    "MKDIR_IN": 8,
    "RENAME_IN": 8,
    "RENAME2_IN": 16,
    "LINK_IN": 8,
    "SETXATTR_IN": 8,
    "SETXATTR_IN_EXT": 16,
    "GETXATTR_IN": 8,
    "GETXATTR_OUT": 8,
    "OPEN_IN": 8,
    "CREATE_IN": 16,
    "OPEN_OUT": 16,
    "RELEASE_IN": 24,
    "READ_IN": 40,
    "WRITE_IN": 40,
    "WRITE_OUT": 8,
    "FSYNC_IN": 16,
    "FALLOCATE_IN": 32,
    "LSEEK_IN": 24,
    "LSEEK_OUT": 8,
    "COPY_FILE_RANGE_IN": 56,
    "COPY_FILE_RANGE_OUT": 8,
    "STATFS_OUT": 80,
    "NOTIFY_INVAL_INODE_OUT": 24,
    "NOTIFY_INVAL_ENTRY_OUT": 16,
    "NOTIFY_DELETE_OUT": 24,
    "BACKING_MAP": 16,
}


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_structures_have_the_size_that_c_gives_them(name: str, size: int) -> None:
    assert getattr(protocol, name).size == size


def test_ioctls_are_numbered_as_c_does() -> None:
    def write(number: int, size: int) -> int:
        return 1 << 30 | size << 16 | 229 << 8 | number

    assert write(1, protocol.BACKING_MAP.size) == protocol.DEV_IOC_BACKING_OPEN
    assert write(2, 4) == protocol.DEV_IOC_BACKING_CLOSE


def test_flags_are_single_bits() -> None:
    for flag in (*Init, *SetAttr):
        assert flag.value.bit_count() == 1, flag


def test_the_table_of_the_server_holds_every_opcode() -> None:
    assert max(Opcode) < 64

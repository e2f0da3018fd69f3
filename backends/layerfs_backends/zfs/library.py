"""The one caller of libzfs_core, OpenZFS's own interface to the kernel: plain names in, errors of ours out.

It is the Python package of that name as OpenZFS ships it (Debian's ``python3-pyzfs``); what PyPI calls pyzfs is of 2015
and crashes. Names go in and come out as bytes, numbers as ints, the choices of a property as their place in a list
(OpenZFS's ``zfs_prop.c``). It knows no call that reads properties or lists datasets: `layerfs_backends.zfs.questions`
has these.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, cast

from layerfs.errors import (
    Busy,
    CommandFailed,
    Corrupt,
    FailedPrecondition,
    LayerfsError,
    NotFound,
    Unsupported,
    os_error,
)

_MODULE = "libzfs_core"
_DEBIAN = Path("/usr/lib/python3/dist-packages", _MODULE)
"""Where python3-pyzfs puts it: a virtual environment does not look there, and it is nothing but Python and cffi."""
_DEVICE = Path("/dev/zfs")

Value = str | int
"""Of a property: a number, or for one of text a string."""

_SEND_FLAGS = ("large_blocks", "embedded_data", "compress")
"""What every OpenZFS receives; without them blocks are cut up and unpacked on the way."""

_Meaning = tuple[type[LayerfsError], str, str]
"""What an error number means in one call: the class, the reason and the hint."""
_TRUNCATED = 1040
"""``ZFS_ERR_STREAM_TRUNCATED`` (OpenZFS's ``include/sys/fs/zfs.h``)."""
_NO_STREAM: _Meaning = (Corrupt, "this is no stream of ZFS, or one that is damaged or ends early", "send it again")
_RECEIVING: Mapping[int, _Meaning] = {
    **dict.fromkeys((errno.EINVAL, errno.EIO, errno.EBADE, _TRUNCATED), _NO_STREAM),
    errno.ENODEV: (FailedPrecondition, "it goes beyond another snapshot than the parent here", "send it whole"),
    errno.ENOTSUP: (Unsupported, "its sender has features that this ZFS lacks", "upgrade ZFS or the pool here"),
}
"""EBADE is what OpenZFS calls ECKSUM on Linux."""


class _Module(Protocol):
    """What is used of the module libzfs_core, which has no type annotations of its own."""

    def lzc_create(self, name: bytes, *, props: Mapping[bytes, bytes | int]) -> None: ...
    def lzc_clone(self, name: bytes, origin: bytes, *, props: Mapping[bytes, bytes | int]) -> None: ...
    def lzc_snapshot(self, snaps: Sequence[bytes]) -> None: ...
    def lzc_destroy(self, name: bytes) -> None: ...
    def lzc_destroy_snaps(self, snaps: Sequence[bytes], *, defer: bool) -> None: ...
    def lzc_rename(self, source: bytes, target: bytes) -> None: ...
    def lzc_exists(self, name: bytes) -> bool: ...
    def lzc_sync(self, name: bytes) -> None: ...
    def lzc_send(self, snapname: bytes, fromsnap: bytes | None, fd: int, flags: Sequence[str]) -> None: ...
    def lzc_receive(self, snapname: bytes, fd: int, *, origin: bytes | None) -> None: ...
    def lzc_channel_program(self, poolname: bytes, program: bytes, *, params: Mapping[bytes, bytes]) -> Any: ...  # noqa: ANN401  whatever the program returns
    def lzc_channel_program_nosync(self, poolname: bytes, program: bytes, *, params: Mapping[bytes, bytes]) -> Any: ...  # noqa: ANN401  whatever the program returns


class Library:
    """The calls that the driver needs; each raises `LayerfsError` that says what could not be done."""

    def __init__(self, module: _Module, failure: type[Exception]) -> None:
        self._module = module
        self._failure = failure

    def create(self, dataset: str, properties: Mapping[str, Value]) -> None:
        """Make an empty file system; raise `NotFound` where the dataset above it is missing."""
        with self._doing(f"create the dataset {dataset}"):
            self._module.lzc_create(dataset.encode(), props=_encoded(properties))

    def clone(self, dataset: str, origin: str, properties: Mapping[str, Value]) -> None:
        """Make a writable file system that starts as the ZFS snapshot ``origin``."""
        with self._doing(f"clone {origin} as {dataset}"):
            self._module.lzc_clone(dataset.encode(), origin.encode(), props=_encoded(properties))

    def snapshot(self, names: Iterable[str]) -> None:
        """Take ZFS snapshots in one transaction: all or none; when it returns they are on disk."""
        wanted = [name.encode() for name in names]
        with self._doing(f"snapshot {', '.join(name.decode() for name in wanted[:3])}"):
            self._module.lzc_snapshot(wanted)

    def destroy(self, dataset: str) -> None:
        """Destroy a file system without snapshots, or a snapshot."""
        with self._doing(f"destroy {dataset}"):
            self._module.lzc_destroy(dataset.encode())

    def destroy_snapshots(self, names: Iterable[str]) -> None:
        """Destroy ZFS snapshots; one with clones, or with a hold, goes when the last of these goes (deferred)."""
        wanted = [name.encode() for name in names]
        with self._doing("destroy snapshots"):
            self._module.lzc_destroy_snaps(wanted, defer=True)

    def exists(self, name: str) -> bool:
        """Tell whether a dataset or snapshot is there."""
        with self._doing(f"look for {name}"):
            return self._module.lzc_exists(name.encode())

    def sync(self, dataset: str) -> None:
        """Wait until what was written to its pool is on disk, and counted."""
        with self._doing(f"sync the pool of {dataset}"):
            self._module.lzc_sync(_pool(dataset))

    def rename_snapshot(self, name: str, new: str) -> None:
        """Give a ZFS snapshot another name of the same dataset; its clones stand on it as before."""
        with self._doing(f"rename {name} to {new}"):
            self._module.lzc_rename(name.encode(), new.encode())

    def send(self, name: str, base: str | None, to: int) -> None:
        """Write a ZFS snapshot to a descriptor, or what it holds beyond ``base``, on which it stands.

        Blocks are sent as they are on disk, compressed ones compressed.
        Raise `OperationFailed` where the reader went away.
        """
        with self._doing(f"send {name}"):
            self._module.lzc_send(name.encode(), base.encode() if base else None, to, _SEND_FLAGS)

    def receive(self, name: str, base: str | None, source: int) -> None:
        """Make a dataset with one ZFS snapshot, ``name``, from what `send` wrote; leave nothing on failure.

        Raise `Corrupt` for bytes that are no such thing, or end early, `FailedPrecondition` for those that go beyond
        another ``base``.
        """
        with self._doing(f"receive {name}", _RECEIVING):
            self._module.lzc_receive(name.encode(), source, origin=base.encode() if base else None)

    def run(self, program: bytes, dataset: str, *, argument: str = "", writes: bool = False) -> Any:  # noqa: ANN401  what the program returns
        """Run a channel program on the pool of a dataset and return its answer (zfs-program(8)).

        It finds both arguments in ``argv``, as ``dataset`` and ``argument``. One that does not write runs on what the
        last transaction wrote and those under way changed; one that does is a transaction by itself. Raise `NotFound`
        where the dataset is missing, `PermissionDenied` for anybody but root.
        """
        if not self.exists(dataset):
            raise NotFound(f"there is no dataset {dataset}")
        call = self._module.lzc_channel_program if writes else self._module.lzc_channel_program_nosync
        argv = {b"dataset": dataset.encode(), b"argument": argument.encode()}
        with self._doing(f"{'change' if writes else 'ask about'} {dataset}"):
            return call(_pool(dataset), program, params=argv)

    @contextmanager
    def _doing(self, what: str, also: Mapping[int, _Meaning] = MappingProxyType({})) -> Iterator[None]:
        try:
            yield
        except self._failure as error:
            raise _translated(what, error, also) from error


def load() -> Library:
    """Return the library; raise `Unsupported` where the kernel or Python lacks its part, and say what to install."""
    if not _DEVICE.exists():
        raise Unsupported(
            "this kernel has no ZFS: there is no /dev/zfs",
            hint="modprobe zfs; where that is missing: apt-get install zfs-dkms zfsutils-linux (Debian: contrib)",
        )
    try:
        module = _import()
        failure: type[Exception] = import_module(f"{_MODULE}.exceptions").ZFSError
        library = Library(module, failure)
        library.exists("layerfs")  # the C library is looked for, and the device opened, when it is first called
    except (ImportError, AttributeError, OSError, LayerfsError) as error:
        raise Unsupported(
            f"the module libzfs_core cannot be used: {error}",
            hint="apt-get install python3-pyzfs (PyPI's pyzfs is another one); in a virtual environment also:"
            " pip install 'layerfs[zfs]'",
        ) from error
    return library


def _import() -> _Module:
    if _MODULE in sys.modules or not _DEBIAN.exists():
        return cast("_Module", import_module(_MODULE))
    # Debian's first: a pyzfs from PyPI, if somebody installed one, has the same name.
    spec = spec_from_file_location(_MODULE, _DEBIAN / "__init__.py", submodule_search_locations=[str(_DEBIAN)])
    if spec is None or spec.loader is None:
        raise ImportError(f"{_DEBIAN} is no package")
    module = module_from_spec(spec)
    sys.modules[_MODULE] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[_MODULE]
        raise
    return cast("_Module", module)


def _encoded(properties: Mapping[str, Value]) -> dict[bytes, bytes | int]:
    return {key.encode(): value.encode() if isinstance(value, str) else value for key, value in properties.items()}


def _pool(dataset: str) -> bytes:
    return dataset.partition("/")[0].partition("@")[0].encode()


def _translated(what: str, error: Exception, also: Mapping[int, _Meaning]) -> LayerfsError:
    """Translate by the error number: the classes of libzfs_core follow that, and say less."""
    number = getattr(error, "errno", None)
    if not isinstance(number, int):
        return CommandFailed(f"cannot {what}: {error}")
    if number in also:
        kind, reason, hint = also[number]
        return kind(f"cannot {what}: {reason}", hint=hint)
    if number == errno.EBUSY:
        return Busy(f"cannot {what}: it is mounted or held", hint="unmount it, in other namespaces too, then try again")
    if number in errno.errorcode:
        return os_error(what, OSError(number, os.strerror(number)))
    return CommandFailed(f"cannot {what}: {error}")

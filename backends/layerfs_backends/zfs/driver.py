"""Open the zfs driver: find the dataset of a store, try out what the driver needs, and write down its name.

::

    <root>/dataset      the name of the store's own dataset, POOL/PATH/layerfs-<token>

``POOL/PATH`` is the option ``dataset``, or the dataset on which ``root`` lies.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from layerfs import trial
from layerfs.contract import Driver
from layerfs.errors import FailedPrecondition, InvalidArgument, LayerfsError, PermissionDenied, Unsupported
from layerfs.kernel import mountinfo, syscalls
from layerfs_backends.zfs import library, questions
from layerfs_backends.zfs.datasets import LAYER, PROPERTIES, ZfsDriver
from layerfs_backends.zfs.library import Library, Value

_RECORD = "dataset"
_ZFS_MAGIC = 0x2FC12FC1
"""``ZFS_SUPER_MAGIC`` of statfs(2)."""

_QUOTAS = ("refquota", "quota")
_DELEGATED = "create,mount,snapshot,clone,destroy,rename,send,receive,userused,userquota,userobjused,userobjquota"
"""What somebody who is not root needs leave for (zfs-allow(8)), but for the mounts; the last four count inodes."""


def open_driver(root: Path, options: Mapping[str, str]) -> Driver:
    """Open the zfs driver on ``root``.

    Options: ``dataset``, the dataset below which the store's own is made, by default the one on which ``root`` lies;
    ``refquota``, the bytes that each active snapshot may refer to, and ``quota``, the bytes that it may take beyond
    what it shares with its parent. Raise `Unsupported` where ZFS or a pool is missing.
    """
    quotas = _quotas(options)
    zfs = library.load()
    place = _recorded(root)
    if place is None:
        place = _begin(root, zfs, options.get("dataset") or _dataset_of(root))
    elif not zfs.exists(place.rpartition("/")[0]):
        pool = place.partition("/")[0]
        raise FailedPrecondition(f"the dataset of {root}, {place}, is not here", hint=f"zpool import {pool}")
    return ZfsDriver(place, zfs, quotas)


def _quotas(options: Mapping[str, str]) -> dict[str, Value]:
    unknown = sorted(set(options) - {"dataset", *_QUOTAS})
    if unknown:
        raise InvalidArgument(
            f"the zfs driver has no option {unknown[0]!r}", hint=f"it has dataset, {' and '.join(_QUOTAS)}"
        )
    given = {name: options[name] for name in _QUOTAS if name in options}
    for name, value in given.items():
        if not value.isdecimal() or not int(value):
            raise InvalidArgument(f"{name}={value} is no number of bytes")
    return {name: int(value) for name, value in given.items()}


def _recorded(root: Path) -> str | None:
    try:
        return (root / _RECORD).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None


def _dataset_of(root: Path) -> str:
    existing = next(path for path in (root, *root.absolute().parents) if path.exists())
    if syscalls.file_system_magic(os.fsencode(existing)) != _ZFS_MAGIC:
        raise Unsupported(
            f"{root} is not on ZFS, and no dataset is named",
            hint="name one: --option dataset=POOL/PATH (`zfs list` shows them); or use overlay2",
        )
    device = existing.stat().st_dev
    found = [one.source for one in mountinfo.mount_points() if os.makedev(*one.device) == device and one.type == "zfs"]
    if not found or "@" in found[0]:
        raise Unsupported(f"the dataset of {root} cannot be found", hint="name it: --option dataset=POOL/PATH")
    return found[0]


def _begin(root: Path, zfs: Library, above: str) -> str:
    """Try out what the driver needs, and write down the name of the store's own dataset, which `create` makes."""
    if not zfs.exists(above):
        raise Unsupported(f"there is no dataset {above}", hint=f"zpool import {above.partition('/')[0]}, or zfs create")
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    place = f"{above}/layerfs-{os.urandom(8).hex()}"
    with trial.scratch(root, _clear):  # one process at a time
        recorded = _recorded(root)
        if recorded is not None:
            return recorded
        try:
            _try_out(zfs, f"{place}-try")
        except LayerfsError as error:
            hint = "run it as root"
            if isinstance(error, PermissionDenied):
                settings = ",".join((*PROPERTIES, "readonly", *_QUOTAS))
                hint += f", or let root give leave: zfs allow -u USER {_DELEGATED},{settings} {above}"
            raise Unsupported(f"datasets do not work in {above}: {error.message}", hint=hint) from error
        new = root / f"{_RECORD}.new"
        with open(new, "w", encoding="utf-8") as file:
            file.write(place + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, root / _RECORD)
    return place


def _clear(place: Path) -> None:
    with suppress(FileNotFoundError):
        place.rmdir()


def _try_out(zfs: Library, name: str) -> None:
    """Make a dataset, a ZFS snapshot and a clone, and destroy all three; raise what goes wrong."""
    with ExitStack() as undo:
        zfs.create(name, PROPERTIES)
        undo.callback(zfs.destroy, name)
        zfs.snapshot([name + LAYER])
        undo.callback(zfs.destroy_snapshots, [name + LAYER])
        zfs.clone(f"{name}/clone", name + LAYER, {})
        undo.callback(zfs.destroy, f"{name}/clone")
        questions.children(zfs, name)

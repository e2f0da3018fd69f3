"""What is asked about datasets, and what several steps do to one as a whole: by channel programs (zfs-program(8)).

These run in the kernel, see one state of the pool, and those that write are one transaction: all or nothing is seen of
them. Only root may run them. Others have the command ``zfs``, which reads the same and is slower; what it does in
several steps, others can see between.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from layerfs import process
from layerfs.errors import Busy, CommandFailed, NoSpace, NotFound, PermissionDenied
from layerfs_backends.zfs.library import Library

_CHILDREN = b"""
local found = {}
for name in zfs.list.children((...)["argv"]["dataset"]) do found[#found + 1] = name end
return found
"""
_SNAPSHOTS = b"""
local found = {}
for name in zfs.list.snapshots((...)["argv"]["dataset"]) do
    local clones = {}
    for clone in zfs.list.clones(name) do clones[#clones + 1] = clone end
    found[name] = clones
end
return found
"""
_SNAPSHOTS_BELOW = b"""
local argv, found = (...)["argv"], {}
for dataset in zfs.list.children(argv["dataset"]) do
    for name in zfs.list.snapshots(dataset) do
        if string.sub(name, -#argv["argument"]) == argv["argument"] then found[#found + 1] = name end
    end
end
return found
"""
_PROPERTY = b"""
local argv = (...)["argv"]
return (zfs.get_prop(argv["dataset"], argv["argument"]))
"""
_DESTROY = b"""
local own = (...)["argv"]["dataset"]
local doomed, clones = {}, {}
for name in zfs.list.snapshots(own) do
    doomed[#doomed + 1] = name
    for clone in zfs.list.clones(name) do clones[#clones + 1] = clone end
end
if #clones > 0 then return {clones = clones} end
for _, name in ipairs(doomed) do
    if zfs.check.destroy(name) ~= 0 then return {held = name} end
end
for _, name in ipairs(doomed) do zfs.sync.destroy(name) end
if zfs.sync.destroy(own) ~= 0 then return {held = own} end
return {}
"""
_ZFS = "zfsutils-linux"


def children(zfs: Library, dataset: str) -> list[str]:
    """Return the datasets right below one; raise `NotFound` where that is missing."""
    try:
        found: Mapping[object, bytes] = zfs.run(_CHILDREN, dataset)
    except PermissionDenied:
        lines = _lines("list", "-r", "-d", "1", "-t", "filesystem", "-o", "name", dataset)
        return [name for name in lines if name != dataset]
    return [name.decode() for name in found.values()]


def snapshots(zfs: Library, dataset: str) -> dict[str, list[str]]:
    """Return the ZFS snapshots of a dataset, each with its clones."""
    try:
        found: Mapping[bytes, Mapping[object, bytes]] = zfs.run(_SNAPSHOTS, dataset)
    except PermissionDenied:
        rows = (line.split("\t") for line in _lines("list", "-d", "1", "-t", "snapshot", "-o", "name,clones", dataset))
        return {name: [clone for clone in clones.split(",") if clone not in {"", "-"}] for name, clones in rows}
    return {name.decode(): [clone.decode() for clone in clones.values()] for name, clones in found.items()}


def snapshots_below(zfs: Library, dataset: str, name: str) -> list[str]:
    """Return the ZFS snapshots called ``name``, such as "@layer", of the datasets right below one."""
    try:
        found: Mapping[object, bytes] = zfs.run(_SNAPSHOTS_BELOW, dataset, argument=name)
    except PermissionDenied:
        lines = _lines("list", "-r", "-d", "2", "-t", "snapshot", "-o", "name", dataset)
        return [line for line in lines if line.endswith(name)]
    return [one.decode() for one in found.values()]


def number(zfs: Library, dataset: str, name: str) -> int:
    """Return the value of a property that is a number."""
    return int(_property(zfs, dataset, name))


def text(zfs: Library, dataset: str, name: str) -> str:
    """Return the value of a property that is text, "" where it has none."""
    found = _property(zfs, dataset, name)
    return found.decode() if isinstance(found, bytes) and found != b"-" else ""


def set_number(dataset: str, name: str, value: int) -> None:
    """Set a property that limits something, 0 for no limit, which neither libzfs_core nor a channel program can.

    Raise `NoSpace` for a limit below what is there, which ZFS refuses.
    """
    try:
        process.run(["zfs", "set", f"{name}={value or 'none'}", dataset], package=_ZFS)
    except CommandFailed as error:
        if "less than" not in error.message:
            raise
        raise NoSpace(f"{dataset} takes more than {value} bytes already", hint="delete some of it first") from error


def destroy_with_snapshots(zfs: Library, dataset: str) -> None:
    """Destroy a file system and its ZFS snapshots, as a whole; raise `Busy` that names the clones of these."""
    try:
        said: Mapping[bytes, Any] = zfs.run(_DESTROY, dataset, writes=True)
    except PermissionDenied:
        found = snapshots(zfs, dataset)
        _check_clones(dataset, [clone for clones in found.values() for clone in clones])
        zfs.destroy_snapshots(found)
        zfs.destroy(dataset)
        return
    _check_clones(dataset, [clone.decode() for clone in said.get(b"clones", {}).values()])
    if held := said.get(b"held"):
        raise Busy(f"{held.decode()} is mounted or held", hint="unmount it, in other namespaces too (zfs holds)")


def inodes(dataset: str) -> int:
    """Count the inodes of a dataset or ZFS snapshot for somebody who may not mount it, by whom they belong to."""
    return sum(int(count) for count in _lines("userspace", "-n", "-p", "-o", "objused", dataset))


def _check_clones(dataset: str, clones: Sequence[str]) -> None:
    if clones:
        raise Busy(f"{dataset} has clones: {', '.join(sorted(clones)[:5])}", hint="remove these first")


def _property(zfs: Library, dataset: str, name: str) -> bytes | int:
    try:
        found: bytes | int = zfs.run(_PROPERTY, dataset, argument=name)
    except PermissionDenied:
        (value,) = _lines("get", "-p", "-o", "value", name, dataset)
        return value.encode()
    return found


def _lines(*words: str) -> list[str]:
    command, *rest = words
    try:
        return process.run(["zfs", command, "-H", *rest], package=_ZFS).splitlines()
    except CommandFailed as error:
        if "does not exist" in error.message:
            raise NotFound(f"there is no dataset {words[-1]}") from error
        raise

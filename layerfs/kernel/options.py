"""Mount options as values: written, read and told apart, without touching the kernel.

A *lower* is one read-only directory of an overlay, the uppermost first; `upper` takes the changes; `work` is the
kernel's scratch space beside it. Escapes are those of the kernel's ``Documentation/filesystems/overlayfs.rst``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from layerfs.errors import InvalidArgument
from layerfs.kernel import syscalls

MAX_LOWERS = 500
"""``OVL_MAX_STACK`` of the kernel: more lowers give EINVAL."""

_LOWERDIR = "lowerdir="
_PART = re.compile(r"(?P<path>(?:[^:\\]|\\.|\\\Z)*)(?P<end>:|\Z)", flags=re.DOTALL)
"""One path and what ends it; a ``\\`` at the very end stands for itself."""


def escape_path(path: str | Path) -> str:
    r"""Return a path with ``\`` and ``:`` escaped, as it stands in ``lowerdir=``, ``upperdir=`` and ``workdir=``."""
    return str(path).replace("\\", "\\\\").replace(":", "\\:")


def unescape_path(text: str) -> str:
    r"""Undo `escape_path`: a ``\`` stands for the character after it."""
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL) if "\\" in text else text


def split_lowerdirs(option: str) -> tuple[str, ...]:
    """Return the lowers, uppermost first, of a ``lowerdir=`` option or of its value.

    Raise `InvalidArgument` for an empty path, which is how data-only lowers (``::``) show.
    """
    value = option.removeprefix(_LOWERDIR)
    lowers = value.split(":") if "\\" not in value else []
    for part in () if lowers else _PART.finditer(value):
        lowers.append(unescape_path(part["path"]))
        if not part["end"]:
            break
    if "" in lowers:
        raise InvalidArgument(f"an empty path among the lower directories {value!r}")
    return tuple(lowers)


def overlay_options(
    lowers: Iterable[str | Path],
    upper: str | Path | None = None,
    work: str | Path | None = None,
    *,
    userxattr: bool = False,
    volatile: bool = False,
) -> tuple[str, ...]:
    """Return the options of an overlay of ``lowers``, the uppermost first, for `layerfs.contract.Mount`.

    Without ``upper`` it is read-only. What makes an upper directory refer to its lowers is off, whatever the kernel's
    defaults: inode index, metadata-only copy-up, directory redirects (semantics of an exportable layer).
    ``userxattr`` is for user namespaces. ``volatile`` never syncs. Raise `InvalidArgument` for an upper without work.
    """
    if (upper is None) is not (work is None):
        raise InvalidArgument("an overlay needs upper and work directory together, or neither")
    options = [_LOWERDIR + ":".join(escape_path(lower) for lower in lowers)]
    if upper is None or work is None:
        options.append("ro")
    else:
        options += [f"upperdir={escape_path(upper)}", f"workdir={escape_path(work)}"]
    # redirect_dir=off would contradict userxattr (EINVAL); nofollow says the same and more in both cases.
    options += ["index=off", "metacopy=off", "redirect_dir=nofollow"]
    options += ["userxattr"] * userxattr + ["volatile"] * volatile
    return tuple(options)


@dataclass(frozen=True, slots=True)
class Flag:
    """A group of attributes of which one generic option of mount(8) sets some and clears the others.

    ``attribute`` and ``attributes`` are what it sets of fsmount(2)'s, and its group; ``legacy`` and ``legacies`` the
    same of mount(2)'s.
    """

    attribute: int
    attributes: int
    legacy: int
    legacies: int


def _pair(on: str, off: str, attribute: int, legacy: int) -> dict[str, Flag]:
    return {on: Flag(attribute, attribute, legacy, legacy), off: Flag(0, attribute, 0, legacy)}


_TIMES = syscalls.MS_NOATIME | syscalls.MS_STRICTATIME | syscalls.MS_RELATIME


def _times(attribute: int, legacy: int) -> Flag:
    return Flag(attribute, syscalls.MOUNT_ATTR_ATIME, legacy, _TIMES)


_FLAGS: dict[str, Flag] = {
    **_pair("ro", "rw", syscalls.MOUNT_ATTR_RDONLY, syscalls.MS_RDONLY),
    **_pair("nosuid", "suid", syscalls.MOUNT_ATTR_NOSUID, syscalls.MS_NOSUID),
    **_pair("nodev", "dev", syscalls.MOUNT_ATTR_NODEV, syscalls.MS_NODEV),
    **_pair("noexec", "exec", syscalls.MOUNT_ATTR_NOEXEC, syscalls.MS_NOEXEC),
    **_pair("nodiratime", "diratime", syscalls.MOUNT_ATTR_NODIRATIME, syscalls.MS_NODIRATIME),
    **_pair("nosymfollow", "symfollow", syscalls.MOUNT_ATTR_NOSYMFOLLOW, syscalls.MS_NOSYMFOLLOW),
    "noatime": _times(syscalls.MOUNT_ATTR_NOATIME, syscalls.MS_NOATIME),
    "strictatime": _times(syscalls.MOUNT_ATTR_STRICTATIME, syscalls.MS_STRICTATIME),
    "relatime": _times(0, syscalls.MS_RELATIME),
    "atime": _times(0, 0),
}

_SUPERBLOCK: dict[str, int] = {
    "ro": syscalls.MS_RDONLY,
    "sync": syscalls.MS_SYNCHRONOUS,
    "dirsync": syscalls.MS_DIRSYNC,
    "lazytime": syscalls.MS_LAZYTIME,
}
"""Options that the file system itself keeps, by their bits for mount(2)."""

_NOTHING = frozenset({"async", "defaults"})
_BINDS = frozenset({"bind", "rbind"})


@dataclass(frozen=True, slots=True)
class Parsed:
    """The options of one mount, told apart.

    ``attributes`` and ``attributes_cleared`` are for fsmount(2) and mount_setattr(2), ``flags`` for mount(2);
    ``superblock`` names those that fsconfig(2) takes as flags; ``data`` are what the file system's own parser gets.
    """

    attributes: int
    attributes_cleared: int
    flags: int
    superblock: tuple[str, ...]
    data: tuple[str, ...]
    bind: bool
    recursive: bool


def parse(options: Sequence[str]) -> Parsed:
    """Tell the options of a mount apart; of two that contradict each other the later wins, as in mount(8)."""
    attributes = cleared = flags = 0
    superblock: dict[str, int] = {}
    data: list[str] = []
    for option in options:
        if flag := _FLAGS.get(option):
            attributes = attributes & ~flag.attributes | flag.attribute
            flags = flags & ~flag.legacies | flag.legacy
            cleared |= flag.attributes & syscalls.MOUNT_ATTR_ATIME  # mount_setattr(2) wants all its bits cleared
        if option in _SUPERBLOCK:
            superblock[option] = _SUPERBLOCK[option]
        elif option == "rw":
            superblock.pop("ro", None)
        elif not flag and option not in _NOTHING | _BINDS and not option.startswith("x-"):  # x-: user space's own
            data.append(option)
    flags |= sum(superblock.values())
    return Parsed(
        attributes,
        cleared,
        flags,
        tuple(superblock),
        tuple(data),
        bind=not _BINDS.isdisjoint(options),
        recursive="rbind" in options,
    )


@dataclass(frozen=True, slots=True)
class Overlay:
    """The directories of an overlay, unescaped, and its other options; ``upper`` is empty where it has none."""

    lowers: tuple[str, ...]
    upper: str
    work: str
    data: tuple[str, ...]


def parse_overlay(data: Iterable[str]) -> Overlay:
    """Read the file system's own options of an overlay; raise `InvalidArgument` where ``lowerdir=`` is missing."""
    lowers: tuple[str, ...] = ()
    places = {"upperdir": "", "workdir": ""}
    others: list[str] = []
    for option in data:
        key, _, value = option.partition("=")
        if key == "lowerdir":
            lowers = split_lowerdirs(value)
        elif key in places:
            places[key] = unescape_path(value)
        else:
            others.append(option)
    if not lowers:
        raise InvalidArgument("an overlay mount without `lowerdir=`")
    return Overlay(lowers, places["upperdir"], places["workdir"], tuple(others))


def legacy_data(overlay: Overlay, lowers: Sequence[str]) -> str:
    """Return the option string of mount(2) for an overlay, with ``lowers`` in the place of its own.

    A comma is escaped once more, for it separates the options there.
    """
    parts = [_LOWERDIR + ":".join(escape_path(lower) for lower in lowers)]
    if overlay.upper:
        parts += [f"upperdir={escape_path(overlay.upper)}", f"workdir={escape_path(overlay.work)}"]
    return ",".join(part.replace(",", "\\,") for part in (*parts, *overlay.data))

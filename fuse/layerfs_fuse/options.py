r"""The options of a union's mount, as words: overlay's own, those of fuse-overlayfs, and ours.

A *lower* is one read-only directory, in ``lowerdir=`` the uppermost first and separated by ``:``; ``\`` escapes what
follows it. Options of other programs that mean nothing here are taken and ignored where the result is the same without
them, and refused where it is not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from layerfs.contract import Whiteouts
from layerfs.errors import InvalidArgument, Unsupported
from layerfs.kernel.options import split_lowerdirs, unescape_path
from layerfs_fuse.ids import AS_THEY_ARE, IdShift, parse_shift
from layerfs_fuse.union.requests import REDIRECT_FROM

FLAGS: Final = frozenset({"ro", "nosuid", "nodev", "noexec", "noatime", "nodiratime", "dirsync", "sync"})
"""Options that the kernel itself keeps."""

_WITHOUT_EFFECT: Final = frozenset(
    {
        "suid", "dev", "exec", "atime", "diratime", "relatime", "strictatime", "async", "defaults",
        "auto", "noauto", "user", "nouser", "users", "_netdev", "nofail",
        "default_permissions", "writeback", "lazytime", "fast_ialloc", "nonempty", "big_writes", "clone_fd",
        "index=off", "metacopy=off", "redirect_dir=off", "redirect_dir=nofollow", "nfs_export=off", "uuid=null",
        "fsync=1", "xattr_permissions=0",
    }
)  # fmt: skip
"""What others say to get what a union does anyway."""
_TUNING: Final = frozenset({"xino", "static_nlink", "timeout", "max_idle_threads", "threaded", "subtype", "fsname"})
"""Names of options that tune others and change nothing that can be seen here."""


@dataclass(frozen=True, slots=True)
class StackOptions:
    """What a union is made of and how it is mounted.

    All paths are absolute; ``lowers`` are the lower directories, the lowest first. ``index`` is a file with their
    merged view, built there if it is missing; None builds one for this mount. ``marks`` is None where the user decides.
    ``redirect`` stores changed blocks of lower files of ``redirect_from`` bytes and more instead of copying these.
    ``aufs`` reads the lowers as branches of AUFS; ``fusepy`` serves by that package. ``quota`` is a file that says what
    the upper directory may take (`layerfs_fuse.union.ledger`).
    """

    lowers: tuple[Path, ...] = ()
    upper: Path | None = None
    work: Path | None = None
    index: Path | None = None
    marks: Whiteouts | None = None
    volatile: bool = False
    redirect: bool = False
    redirect_from: int = REDIRECT_FROM
    aufs: bool = False
    fusepy: bool = False
    acl: bool = True
    passthrough: bool = True
    allow_other: bool = False
    users: IdShift = AS_THEY_ARE
    groups: IdShift = AS_THEY_ARE
    log: Path | None = None
    quota: Path | None = None
    flags: frozenset[str] = frozenset()

    @property
    def read_only(self) -> bool:
        """Tell whether nothing can be written."""
        return "ro" in self.flags or self.upper is None


def split(text: str) -> tuple[str, ...]:
    r"""Return the options of a ``-o`` word; a comma inside one is escaped by ``\``."""
    return tuple(part.replace("\\,", ",") for part in re.findall(r"(?:[^,\\]|\\.)+", text))


def parse(words: Iterable[str]) -> StackOptions:
    """Read the options; of two that contradict each other the later wins.

    Raise `InvalidArgument` for an option that is not known or not right, `Unsupported` for one that is known and would
    have to change what is seen.
    """
    reading = _Reading()
    for word in words:
        reading.take(word)
    return reading.options()


class _Reading:
    """The options read so far."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}
        self._switches: set[str] = set()
        self._flags: set[str] = set()

    def take(self, word: str) -> None:
        key, has_value, value = word.partition("=")
        if word in FLAGS:
            self._flags.add(word)
        elif word == "rw":
            self._flags.discard("ro")
        elif word in _WITHOUT_EFFECT or key in _TUNING or key.startswith("x-"):
            return
        elif word == "index=on":  # overlay's, which is no file
            _refuse(word)
        elif has_value and key in _VALUES:
            self._values[key] = value
        elif not has_value and key in _SWITCHES:
            self._switches.add(key)
        else:
            _refuse(word)

    def options(self) -> StackOptions:
        upper, work = (self._path(key) for key in ("upperdir", "workdir"))
        if (upper is None) is not (work is None):
            raise InvalidArgument(
                "upperdir and workdir go together", hint="give both, or neither for a read-only union"
            )
        lowers = split_lowerdirs(self._values["lowerdir"]) if self._values.get("lowerdir") else ()
        if not lowers and upper is None:
            raise InvalidArgument("a union of nothing", hint="give lowerdir=, or upperdir= and workdir=")
        return StackOptions(
            lowers=tuple(Path(lower).absolute() for lower in reversed(lowers)),
            upper=upper,
            work=work,
            index=self._path("index"),
            marks=Whiteouts.OVERLAY_USER if "userxattr" in self._switches else None,
            volatile="volatile" in self._switches or self._values.get("fsync") == "0",
            redirect=self._write(),
            redirect_from=_number("redirect_from", self._values.get("redirect_from", str(REDIRECT_FROM))),
            aufs=self._aufs(),
            fusepy="fusepy" in self._switches,
            acl="noacl" not in self._switches,
            passthrough="nopassthrough" not in self._switches,
            allow_other=not self._switches.isdisjoint({"allow_other", "allow_root"}),
            users=self._shift("uidmapping", "squash_to_uid"),
            groups=self._shift("gidmapping", "squash_to_gid"),
            log=self._path("log"),
            quota=self._path("quota"),
            flags=frozenset(self._flags),
        )

    def _path(self, key: str) -> Path | None:
        value = self._values.get(key)
        return Path(unescape_path(value)).absolute() if value else None

    def _write(self) -> bool:
        value = self._values.get("write", "copy")
        if value not in {"copy", "redirect"}:
            raise InvalidArgument(f"write={value} is no way to write", hint="write=copy or write=redirect")
        return value == "redirect"

    def _aufs(self) -> bool:
        aufs = "aufs" in self._switches
        if aufs and "ro" in self._flags and self._values.get("upperdir"):
            raise InvalidArgument(
                "with aufs all lower directories are branches of AUFS, and an upper directory is none",
                hint="leave out ro, or upperdir and workdir",
            )
        return aufs

    def _shift(self, mapping: str, squash: str) -> IdShift:
        if "squash_to_root" in self._switches:
            return IdShift(squash=0)
        if squash in self._values:
            return IdShift(squash=_id(squash, self._values[squash]))
        return parse_shift(self._values[mapping]) if self._values.get(mapping) else AS_THEY_ARE


_VALUES: Final = frozenset(
    {
        "lowerdir", "upperdir", "workdir", "index", "write", "redirect_from", "log", "quota", "fsync",
        "uidmapping", "gidmapping", "squash_to_uid", "squash_to_gid",
    }
)  # fmt: skip
_SWITCHES: Final = frozenset(
    {"userxattr", "volatile", "noacl", "nopassthrough", "allow_other", "allow_root", "squash_to_root", "aufs", "fusepy"}
)


def _number(option: str, text: str) -> int:
    if not text.isdecimal():
        raise InvalidArgument(f"{option}={text} is no number of bytes")
    return int(text)


def _id(option: str, text: str) -> int:
    if not text.isdecimal() or int(text) >= (1 << 32) - 1:
        raise InvalidArgument(f"{option}={text} is no id")
    return int(text)


def _refuse(word: str) -> None:
    key = word.partition("=")[0]
    if key.endswith("context"):
        raise Unsupported(f"a union sets no labels, as {word!r} asks for", hint="leave it out where SELinux is off")
    if key in {
        "index",
        "metacopy",
        "redirect_dir",
        "nfs_export",
        "plugins",
        "xattr_permissions",
        "noxattrs",
        "cachedir",
    }:
        raise Unsupported(f"a union has no {word!r}", hint="leave it out")
    raise InvalidArgument(f"{word!r} is no option of a union", hint="see docs/reference/union.md")

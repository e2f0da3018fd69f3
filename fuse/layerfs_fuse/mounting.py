"""Mount a FUSE file system and take it away: by mount(2) as root, by fusermount3(1) as anybody else.

What comes of mounting is a *device*, a descriptor of /dev/fuse on which the requests of that one mount arrive. Root is
also who is root in a user namespace of their own with its own mounts. A mount whose server has ended is *stale*: every
access gives ENOTCONN until it is unmounted.
"""

from __future__ import annotations

import errno
import os
import re
import socket
from dataclasses import dataclass
from pathlib import Path

from layerfs import process
from layerfs.errors import (
    AlreadyExists,
    Busy,
    CommandFailed,
    FailedPrecondition,
    InvalidArgument,
    LayerfsError,
    OperationFailed,
    PermissionDenied,
    Unsupported,
    os_error,
)
from layerfs.kernel import mounting, syscalls
from layerfs.kernel.holders import busy_hint

SUBTYPE = "layerfs"
"""The kind of file system in mountinfo is ``fuse.`` and this."""

_DEVICE = "/dev/fuse"
_PACKAGE = "fuse3"
_FLAGS = {
    "ro": syscalls.MS_RDONLY,
    "nosuid": syscalls.MS_NOSUID,
    "nodev": syscalls.MS_NODEV,
    "noexec": syscalls.MS_NOEXEC,
    "noatime": syscalls.MS_NOATIME,
    "nodiratime": syscalls.MS_NODIRATIME,
    "dirsync": syscalls.MS_DIRSYNC,
    "sync": syscalls.MS_SYNCHRONOUS,
}

_HELPER_ERRORS: tuple[tuple[str, type[LayerfsError], str | None], ...] = (
    ("user_allow_other", PermissionDenied, "as root: add a line `user_allow_other` to /etc/fuse.conf"),
    ("too many FUSE filesystems", FailedPrecondition, "as root: raise mount_max in /etc/fuse.conf"),
    (f"{_DEVICE}: Permission denied", PermissionDenied, f"as root: chmod 666 {_DEVICE}"),
    ("fuse device not found", Unsupported, "as root: modprobe fuse"),
    ("already mounted", AlreadyExists, None),
    ("ermission denied", PermissionDenied, "the directory has to be yours, and writable"),
    ("no write access", PermissionDenied, "the directory has to be yours, and writable"),
    ("not permitted", PermissionDenied, "the directory has to be yours, and writable"),
)
"""What fusermount3 says, what it is, and what to do about it; the first that fits counts."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """How a union is mounted.

    ``source`` is what mountinfo shows as its device. ``allow_other`` lets all users in, not only the one who mounts:
    an ordinary user may ask for it where /etc/fuse.conf says ``user_allow_other``. The kernel always checks
    permissions itself, by the owners and modes that the server tells. ``flags`` are those of a mount in words (`ro`,
    `nosuid`, ...); an ordinary user's mounts are always nosuid and nodev.
    """

    source: str = SUBTYPE
    allow_other: bool = False
    flags: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """Refuse flags that are none."""
        if unknown := sorted(self.flags - _FLAGS.keys()):
            raise InvalidArgument(
                f"{unknown[0]!r} is no flag of a FUSE mount", hint=f"known: {', '.join(sorted(_FLAGS))}"
            )

    @property
    def mount_flags(self) -> int:
        """Return the flags as mount(2) takes them."""
        return sum(_FLAGS[name] for name in self.flags)

    def words(self) -> tuple[str, ...]:
        """Return the options that both ways of mounting take."""
        return ("default_permissions", *(("allow_other",) if self.allow_other else ()))


def attach(target: Path, attachment: Attachment) -> int:
    """Mount at ``target``, an existing directory or file, and return the device.

    Accesses wait until somebody answers on the device; the mount is taken away by `detach`, and becomes stale when the
    last descriptor of the device is closed. Raise `LayerfsError`.
    """
    place = _place(target)
    if is_stale(place):
        raise _stale(place)
    if os.geteuid() == 0:
        return _attach_directly(place, attachment)
    return _attach_by_helper(place, attachment)


def _place(target: Path) -> Path:
    try:
        return target.resolve(strict=True)
    except OSError as error:
        if error.errno == errno.ENOTCONN:
            raise _stale(target) from error
        raise os_error(f"mount at {target}", error) from error


def _stale(target: Path) -> FailedPrecondition:
    what = f"at {target} is a FUSE mount whose server has ended"
    return FailedPrecondition(
        what, hint=f"unmount it first: `fusermount3 -u -z {target}`, or `umount -l {target}` as root"
    )


def is_stale(target: Path) -> bool:
    """Tell whether ``target`` is a mount whose server has ended; asks the server of one that is not."""
    try:
        os.statvfs(target)  # the kernel may know the attributes by heart, and never how full it is
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False


# -- mount(2) ----------------------------------------------------------------------------------------------------------


def _open_device() -> int:
    try:
        return os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in {errno.ENOENT, errno.ENODEV, errno.ENXIO}:
            raise Unsupported("this kernel has no FUSE", hint="modprobe fuse") from error
        raise os_error("use FUSE", error) from error


def _attach_directly(place: Path, attachment: Attachment) -> int:
    device = _open_device()
    try:
        root_mode = os.stat(place).st_mode & 0o170000
        who = f"user_id={os.geteuid()},group_id={os.getegid()}"
        data = ",".join((f"fd={device},rootmode={root_mode:o},{who}", *attachment.words()))
        kind = f"fuse.{SUBTYPE}".encode()
        syscalls.mount(os.fsencode(attachment.source), os.fsencode(place), kind, attachment.mount_flags, data.encode())
    except OSError as error:
        os.close(device)
        if error.errno == errno.ENOTCONN:
            raise _stale(place) from error
        if error.errno == errno.ENODEV:
            raise Unsupported("this kernel has no FUSE", hint="modprobe fuse") from error
        raise os_error(f"mount at {place}", error) from error
    return device


# -- fusermount3(1) ----------------------------------------------------------------------------------------------------


def _attach_by_helper(place: Path, attachment: Attachment) -> int:
    """Let the setuid program mount; it sends the device over the socket that ``_FUSE_COMMFD`` names."""
    name = re.sub(r"[\\,]", r"\\\g<0>", attachment.source)  # as libfuse's util/fusermount.c reads it
    options = (*attachment.words(), f"fsname={name}", f"subtype={SUBTYPE}", *sorted(attachment.flags))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        with theirs:
            env = {**os.environ, "_FUSE_COMMFD": str(theirs.fileno())}
            words = ["fusermount3", "-o", ",".join(options), "--", os.fspath(place)]
            try:
                process.run(words, package=_PACKAGE, env=env, pass_fds=(theirs.fileno(),))
            except CommandFailed as error:
                raise _helper_error(place, error) from error
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    if not descriptors:
        raise OperationFailed(f"fusermount3 mounted at {place} and sent no device", hint="is it the one of libfuse 3?")
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]


def _helper_error(place: Path, error: CommandFailed) -> LayerfsError:
    """Name the error of fusermount3 by what its message says: it has one exit status for all."""
    words = error.message.rpartition("fusermount3:")[2].strip() or error.message
    if "not connected" in words:
        return _stale(place)
    if "busy" in words:
        return Busy(f"cannot unmount {place}: {words}", hint=busy_hint(place))
    for fragment, kind, hint in _HELPER_ERRORS:
        if fragment in words:
            return kind(f"FUSE mount at {place}: {words}", hint=hint)
    return error


# -- taking away -------------------------------------------------------------------------------------------------------


def detach(target: Path, *, lazy: bool = False) -> None:
    """Unmount ``target``, stale or not; ``lazy`` takes it out of sight at once and lets its users finish.

    Everything that was written has reached the server when it returns, unless lazy. Raise `Busy` that names who uses
    it, and `FailedPrecondition` where nothing is mounted.
    """
    if os.geteuid() == 0:
        mounting.unmount(target, lazy=lazy)
        return
    # Resolving a stale mount's own name fails, so only the directory that it is in is resolved.
    place = target.parent.resolve() / target.name
    words = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", os.fspath(place)]
    try:
        process.run(words, package=_PACKAGE)
    except CommandFailed as error:
        if "not found in /etc/mtab" in error.message:
            raise FailedPrecondition(f"nothing of yours is mounted at {target}") from error
        raise _helper_error(place, error) from error

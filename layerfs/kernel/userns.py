"""User namespaces: how somebody without root becomes root of a world of their own (user_namespaces(7)).

There they may mount overlays, with ``userxattr``. Which ids exist in it is the *id map*: the ranges that
``/etc/subuid`` and ``/etc/subgid`` grant, set up by newuidmap(1) and newgidmap(1), or else the user's own id alone.
"""

from __future__ import annotations

import errno
import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from layerfs import privilege, process
from layerfs.errors import CommandFailed, FailedPrecondition, LayerfsError, Unsupported, os_error
from layerfs.kernel import syscalls
from layerfs.kernel.children import attempt, fork

_EVERY_ID = (1 << 32) - 1
"""Ids that the initial namespace maps: all but -1."""

_SWITCHES = (
    ("/proc/sys/kernel/unprivileged_userns_clone", "0", "sysctl -w kernel.unprivileged_userns_clone=1"),
    ("/proc/sys/user/max_user_namespaces", "0", "sysctl -w user.max_user_namespaces=15000"),
    (
        "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
        "1",
        "sysctl -w kernel.apparmor_restrict_unprivileged_userns=0, or give layerfs an AppArmor profile with `userns,`",
    ),
)
"""What forbids user namespaces to ordinary users: file, the value that does, and what root can do about it."""


@dataclass(frozen=True, slots=True)
class IdRange:
    """``count`` ids that start at ``inside`` in this namespace and are ``outside`` and on in the one above."""

    inside: int
    outside: int
    count: int


@dataclass(frozen=True, slots=True)
class IdMap:
    """The user and group ids that exist in this namespace."""

    users: tuple[IdRange, ...]
    groups: tuple[IdRange, ...]

    @property
    def single(self) -> bool:
        """Tell whether there is but one user or one group, so that owners cannot be kept."""
        return any(sum(part.count for part in parts) <= 1 for parts in (self.users, self.groups))


def id_map() -> IdMap:
    """Return which ids are mapped for this process."""
    return IdMap(_read_map(Path("/proc/self/uid_map")), _read_map(Path("/proc/self/gid_map")))


def _read_map(path: Path) -> tuple[IdRange, ...]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:  # a kernel without user namespaces
        return (IdRange(0, 0, _EVERY_ID),)
    return tuple(IdRange(*map(int, line.split())) for line in lines)


def is_initial() -> bool:
    """Tell whether this process is in the initial user namespace (or one that maps every id to itself)."""
    return privilege.in_initial_namespace()


def can_enter() -> None:
    """Try `enter` in a child; raise `Unsupported` with a hint where this host forbids it."""
    attempt(enter, "enter a user namespace")


def enter() -> None:
    """Make this process root of a new user and mount namespace; nothing that it mounts from now on is seen outside.

    A user without ranges in ``/etc/subuid`` gets the single id 0. Raise `FailedPrecondition` in a process with
    threads, `Unsupported` where this host forbids it.
    """
    if len(os.listdir("/proc/self/task")) > 1:
        raise FailedPrecondition("a process with several threads cannot enter a user namespace")
    user, group = os.geteuid(), os.getegid()
    ready, go = os.pipe()
    helper = _fork_mapper(ready, go)
    try:
        _unshare()
        os.write(go, b"x")
    finally:
        os.close(go)
        os.waitpid(helper, 0)
        os.close(ready)
    _map_missing(user, group)
    try:
        # What the host unmounts goes here as well, and nothing goes back.
        syscalls.mount(None, b"/", None, syscalls.MS_REC | syscalls.MS_SLAVE)
    except OSError as error:
        raise _refused("set up the mounts of a user namespace", error) from error


def _unshare() -> None:
    try:
        syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS)
    except OSError as error:
        raise _refused("enter a user namespace", error) from error


def _refused(what: str, error: OSError) -> LayerfsError:
    """Say which switch of this host forbids user namespaces."""
    if error.errno not in {errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EUSERS, errno.EINVAL, errno.ENOSYS}:
        return os_error(what, error)
    hint = "use root, or ask its administrator to allow user namespaces to ordinary users"
    for path, forbidding, remedy in _SWITCHES:
        try:
            if Path(path).read_text(encoding="utf-8").strip() == forbidding:
                hint = f"as root: {remedy}"
        except OSError:
            continue
    if error.errno == errno.ENOSPC:
        hint = "as root: sysctl -w user.max_user_namespaces=15000"
    return Unsupported(f"this host does not let an ordinary user {what}: {error.strerror}", hint=hint)


# -- the id map --------------------------------------------------------------------------------------------------------


def _fork_mapper(ready: int, go: int) -> int:
    """Fork the process that maps ranges from outside, once the parent is in its namespace; return its id.

    newuidmap(1) works only on the process of somebody else: the one inside may map no id but its own.
    """
    # What the child needs, now: an import there could wait for one that another thread was in the middle of.
    import shutil  # noqa: F401, PLC0415
    import subprocess  # noqa: F401, PLC0415

    parent = os.getpid()
    helper = fork()
    if helper == 0:
        try:
            os.close(go)
            _map_ranges(parent, ready)
        finally:
            os._exit(0)  # what it could not map, the parent sees in its maps
    return helper


def _map_ranges(pid: int, ready: int) -> None:
    if not os.read(ready, 1):
        return
    for tool, table, own in (
        ("newuidmap", "/etc/subuid", os.geteuid()),
        ("newgidmap", "/etc/subgid", os.getegid()),
    ):
        arguments = _ranges(Path(table), own)
        if not arguments:
            return
        try:
            process.run([tool, str(pid), *arguments], package="uidmap")
        except (CommandFailed, Unsupported):
            return


def _ranges(table: Path, own: int) -> list[str]:
    """Return the words for newuidmap(1): one's own id as 0, then what ``table`` grants (subuid(5)); empty for none."""
    user = os.geteuid()
    names = {str(user)}
    try:
        names.add(pwd.getpwuid(user).pw_name)
        lines = table.read_text(encoding="utf-8", errors="replace").splitlines()
    except (KeyError, OSError):
        return []
    words = ["0", str(own), "1"]
    inside = 1
    for line in lines:
        name, _, rest = line.partition(":")
        start, _, count = rest.partition(":")
        if name in names and start.isdecimal() and count.isdecimal() and int(count) > 0:
            words += [str(inside), start, count]
            inside += int(count)
    return words if inside > 1 else []


def _map_missing(user: int, group: int) -> None:
    """Map one's own id alone where no ranges were mapped; an ordinary user has to give up setgroups(2) for that."""
    # After a change of user the kernel shows /proc/self as root's, and it could not be written.
    before = syscalls.set_dumpable(1)
    try:
        if not _read_map(Path("/proc/self/uid_map")):
            _write("uid_map", f"0 {user} 1")
        if not _read_map(Path("/proc/self/gid_map")):
            _write("setgroups", "deny")
            _write("gid_map", f"0 {group} 1")
    finally:
        syscalls.set_dumpable(before if before <= 1 else 0)


def _write(name: str, text: str) -> None:
    try:
        Path("/proc/self", name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise _refused("map the ids of a user namespace", error) from error

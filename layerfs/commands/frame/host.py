"""What this host's kernel can do for layerfs, found out by trying it in a child process that nothing outlives."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

from layerfs.errors import LayerfsError, Unsupported
from layerfs.kernel import syscalls, userns
from layerfs.kernel.children import attempt, fork
from layerfs.runtime import tool

_NOBODY = 65534
"""An ordinary user to try as, when root asks."""
_MOUNT_ATTR_IDMAP = 0x00100000  # linux/mount.h


class Fact(NamedTuple):
    """Something that the kernel can or cannot do here: what it is good for, why it is missing, what to do about it."""

    name: str
    works: bool
    detail: str
    hint: str = ""


def facts() -> tuple[Fact, ...]:
    """Try everything and tell."""
    return (
        _user_namespaces(),
        _fact("new mount API", _new_mount_api, "mounts appear whole and with their attributes", "Linux 5.2 or later"),
        _fact(
            "overlay layers by descriptor",
            _layers_by_descriptor,
            "layers mount whatever the length of their paths",
            "Linux 6.13 or later; without it layerfs uses shorter paths",
        ),
        _fact(
            "idmapped mounts", _idmapped_mounts, "owners can be shifted without a copy", "Linux 5.12 or later, as root"
        ),
        _fuse(),
        *map(_runtime, tool.NAMES),
    )


def _fact(name: str, body: Callable[[], None], detail: str, hint: str) -> Fact:
    try:
        attempt(body, "use it")
    except LayerfsError as error:
        return Fact(name, False, error.message, hint)
    return Fact(name, True, detail)


def _user_namespaces() -> Fact:
    name = "user namespaces"
    try:
        userns.can_enter()
    except LayerfsError as error:
        return Fact(name, False, error.message, error.hint or "")
    if os.geteuid() != 0:
        return Fact(name, True, "this user can work without root")
    hint = "sysctl kernel.unprivileged_userns_clone=1 user.max_user_namespaces=15000"
    return _fact(name, _enter_as_nobody, "ordinary users can work without root", hint)


def _enter_as_nobody() -> None:
    os.setgroups([])
    os.setresgid(_NOBODY, _NOBODY, _NOBODY)
    os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    syscalls.unshare(syscalls.CLONE_NEWUSER | syscalls.CLONE_NEWNS)


def _new_mount_api() -> None:
    _become_root()
    context = syscalls.fsopen(b"tmpfs")
    syscalls.fsconfig_create(context)
    syscalls.fsmount(context, 0)


def _layers_by_descriptor() -> None:
    _become_root()
    context = syscalls.fsopen(b"overlay")
    syscalls.fsconfig_fd(context, b"lowerdir+", os.open("/", os.O_PATH | os.O_DIRECTORY))


def _idmapped_mounts() -> None:
    """Shift the owners of a private copy of a tmpfs by a user namespace, as mount_setattr(2) describes it."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    context = syscalls.fsopen(b"tmpfs")
    syscalls.fsconfig_create(context)
    tree = syscalls.fsmount(context, 0)
    # The attribute's namespace is descriptor 0 of this child, which is what `mount_setattr` passes when it knows none.
    os.dup2(_other_user_namespace(), 0)
    syscalls.mount_setattr(tree, attr_set=_MOUNT_ATTR_IDMAP)


def _other_user_namespace() -> int:
    """Return a descriptor of a new user namespace with a mapping: the kernel refuses one without."""
    ready, done = os.pipe()
    pid = fork()
    if pid == 0:
        _hold_user_namespace(done)
    os.close(done)
    try:
        if not os.read(ready, 1):
            raise Unsupported("no user namespace can be made")
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{pid}/{name}").write_text(f"0 {_NOBODY} 1\n", encoding="ascii")
        return os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _hold_user_namespace(done: int) -> NoReturn:
    """Be the process that keeps the namespace until it is killed."""
    try:
        syscalls.die_with_parent(signal.SIGKILL)
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        os.write(done, b"x")
        while True:
            signal.pause()
    finally:
        os._exit(1)


def _fuse() -> Fact:
    name = "/dev/fuse"
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return Fact(name, False, "it is not there", "modprobe fuse")
    except OSError as error:
        return Fact(name, False, error.strerror or str(error), "chmod 666 /dev/fuse, as udev does where it runs")
    return Fact(name, True, "file systems of ordinary users")


def _runtime(name: str) -> Fact:
    try:
        tool.find_runtime(name).check()
    except Unsupported as error:
        return Fact(name, False, error.message, error.hint or "another runtime may do: `layerfs run --runtime PROGRAM`")
    return Fact(name, True, "it runs containers (`layerfs run`)")


def _become_root() -> None:
    if os.geteuid() == 0:
        syscalls.unshare(syscalls.CLONE_NEWNS)
    else:
        userns.enter()

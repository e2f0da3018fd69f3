"""The configuration of a bundle (config.json), made of what the image says, what the user wants and what the host has.

Source: runtime-spec 1.0.2, config.md and config-linux.md. Nothing here touches the host: it is a function from values
to a document.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from layerfs.errors import InvalidArgument
from layerfs.image.config import ContainerConfig
from layerfs.kernel.chroot import PATH
from layerfs.kernel.userns import IdMap, IdRange
from layerfs.runtime import capabilities, seccomp
from layerfs.runtime.container import Container, Limits, Network, check_words
from layerfs.runtime.users import Account

_VERSION: Final = "1.0.2"
_PERIOD: Final = 100_000
"""Microseconds over which the share of the processors is counted: the kernel's default (sched-bwc)."""
_TTY_GROUP: Final = 5
"""The group of terminals in every distribution, as devpts has it."""

_MASKED: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
"""What tells of the host, or takes commands to it, and knows no namespace."""
_READ_ONLY: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


@dataclass(frozen=True, slots=True)
class Host:
    """What a configuration depends on outside of image and wishes.

    ``mapping`` is the id map of a user namespace that the runtime makes, None for none. ``inside`` tells that the
    caller is in a user namespace already, ``unified`` that there is cgroup v2 alone, ``swap_counted`` that swap can be
    limited. ``cgroup`` is where the container's group goes ("" leaves it to the runtime).
    """

    machine: str
    mapping: IdMap | None = None
    inside: bool = False
    unified: bool = False
    swap_counted: bool = False
    cgroup: str = ""

    @property
    def privileged(self) -> bool:
        """Tell whether the container's root is the host's, or has ids that the host's root gave."""
        return not self.inside and (self.mapping is None or not self.mapping.single)

    def has_group(self, gid: int) -> bool:
        """Tell whether a group exists in the container."""
        if self.mapping is None:
            return not self.inside
        return any(part.inside <= gid < part.inside + part.count for part in self.mapping.groups)


def configuration(wanted: Container, image: ContainerConfig, account: Account, host: Host) -> dict[str, Any]:
    """Return the document of config.json; raise `InvalidArgument` where there is no command, or one that cannot be."""
    held = capabilities.chosen(wanted.add_capabilities, wanted.drop_capabilities)
    return {
        "ociVersion": _VERSION,
        "process": _process(wanted, image, account, held),
        "root": {"path": "rootfs", "readonly": wanted.read_only},
        "hostname": wanted.hostname,
        "mounts": [*_mounts(wanted, host), *_binds(wanted)],
        "linux": _linux(wanted, host, held),
    }


def _process(wanted: Container, image: ContainerConfig, account: Account, held: Sequence[str]) -> dict[str, Any]:
    return {
        "terminal": wanted.terminal,
        "user": {"uid": account.uid, "gid": account.gid, "additionalGids": list(account.groups)},
        "args": _arguments(wanted, image),
        "env": _environment(wanted, image, account),
        "cwd": _directory(wanted.workdir if wanted.workdir is not None else image.workdir),
        "capabilities": {kind: list(held) for kind in ("bounding", "effective", "permitted")},
    }


def _arguments(wanted: Container, image: ContainerConfig) -> list[str]:
    """Return the words of the command: a new entrypoint drops the image's own words as well (image-spec config.md)."""
    entrypoint = image.entrypoint if wanted.entrypoint is None else wanted.entrypoint
    words = wanted.command or (image.cmd if wanted.entrypoint is None else ())
    check_words("the image's command", (*entrypoint, *words))
    if not (*entrypoint, *words):
        raise InvalidArgument("the image names no command to run", hint="give one: layerfs run IMAGE -- /bin/sh")
    return [*entrypoint, *words]


def _environment(wanted: Container, image: ContainerConfig, account: Account) -> list[str]:
    check_words("the image's environment", image.env)
    usual = [f"PATH={PATH}", f"HOSTNAME={wanted.hostname}"]
    usual += [*(["TERM=xterm"] if wanted.terminal else []), f"HOME={account.home}"]
    given = (text for text in (*usual, *image.env, *wanted.env) if text.find("=") > 0)
    return list({text.partition("=")[0]: text for text in given}.values())


def _directory(path: str) -> str:
    check_words("the working directory", [path])
    if path and not path.startswith("/"):
        raise InvalidArgument(f"the working directory {path!r} is not absolute", hint="begin it with a slash")
    return path or "/"


# -- mounts ------------------------------------------------------------------------------------------------------------


def _mounts(wanted: Container, host: Host) -> list[dict[str, Any]]:
    terminals = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]
    if host.privileged or host.has_group(_TTY_GROUP):
        terminals.append(f"gid={_TTY_GROUP}")
    made = [
        _mount("/proc", "proc", "nosuid", "noexec", "nodev"),
        _mount("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        _mount("/dev/pts", "devpts", *terminals),
        _mount("/dev/shm", "tmpfs", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k"),  # noqa: S108  the container's
        _mount("/dev/mqueue", "mqueue", "nosuid", "noexec", "nodev"),
        _system(wanted, host),
    ]
    if host.privileged:
        made.append(_mount("/sys/fs/cgroup", "cgroup", "nosuid", "noexec", "nodev", "relatime", "ro"))
    if wanted.network is Network.HOST:
        made += [_bind(path, path, read_only=True) for path in ("/etc/resolv.conf", "/etc/hosts")]
    return made


def _system(wanted: Container, host: Host) -> dict[str, Any]:
    """Return the mount of /sys: only who owns the network namespace may mount a new one (sysfs(5))."""
    if wanted.network is Network.HOST and (host.inside or host.mapping is not None):
        return _mount("/sys", "none", "rbind", "nosuid", "noexec", "nodev", "ro", source="/sys")
    return _mount("/sys", "sysfs", "nosuid", "noexec", "nodev", "ro")


def _binds(wanted: Container) -> list[dict[str, Any]]:
    return [_bind(bind.source, bind.target, read_only=bind.read_only) for bind in wanted.binds]


def _bind(source: str, target: str, *, read_only: bool) -> dict[str, Any]:
    return _mount(target, "none", "rbind", "rprivate", "ro" if read_only else "rw", source=source)


def _mount(target: str, kind: str, *options: str, source: str = "") -> dict[str, Any]:
    return {"destination": target, "type": kind, "source": source or kind, "options": list(options)}


# -- Linux -------------------------------------------------------------------------------------------------------------


def _linux(wanted: Container, host: Host, held: Sequence[str]) -> dict[str, Any]:
    made: dict[str, Any] = {
        "namespaces": [{"type": name} for name in _namespaces(wanted, host)],
        "resources": _resources(wanted.limits, host),
        "maskedPaths": list(_MASKED),
        "readonlyPaths": list(_READ_ONLY),
    }
    if host.cgroup:
        made["cgroupsPath"] = host.cgroup
    if host.mapping is not None:
        made["uidMappings"] = list(map(_range, host.mapping.users))
        made["gidMappings"] = list(map(_range, host.mapping.groups))
    filter_ = seccomp.profile(held, host.machine) if wanted.confined else None
    return {**made, "seccomp": filter_} if filter_ is not None else made


def _namespaces(wanted: Container, host: Host) -> list[str]:
    names = ["pid", "ipc", "uts", "mount"]
    if wanted.network is Network.NONE:
        names.append("network")
    if host.unified:
        names.append("cgroup")
    if host.mapping is not None:
        names.append("user")
    return names


def _resources(limits: Limits, host: Host) -> dict[str, Any]:
    made: dict[str, Any] = {"devices": [{"allow": False, "access": "rwm"}]} if host.privileged else {}
    if limits.memory is not None:
        made["memory"] = {"limit": limits.memory}
        if host.swap_counted:
            made["memory"]["swap"] = limits.memory  # memory and swap together: none of the latter
    if limits.cpus is not None:
        made["cpu"] = {"quota": round(limits.cpus * _PERIOD), "period": _PERIOD}
    if limits.pids is not None:
        made["pids"] = {"limit": limits.pids}
    return made


def _range(part: IdRange) -> dict[str, int]:
    return {"containerID": part.inside, "hostID": part.outside, "size": part.count}

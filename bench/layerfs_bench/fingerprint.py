"""The machine's fingerprint: what figures depend on, so that two results can be told apart."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from layerfs import process
from layerfs.errors import LayerfsError
from layerfs.kernel import userns
from layerfs_bench import clock
from layerfs_bench.results import Fingerprint, Place, Version

_SETTINGS = (
    "vm.dirty_background_ratio",
    "vm.dirty_expire_centisecs",
    "vm.dirty_ratio",
    "vm.dirty_writeback_centisecs",
    "vm.swappiness",
    "vm.vfs_cache_pressure",
)
_MODULES = {
    "overlay.redirect_dir": "/sys/module/overlay/parameters/redirect_dir",
    "overlay.metacopy": "/sys/module/overlay/parameters/metacopy",
    "overlay.index": "/sys/module/overlay/parameters/index",
    "transparent_hugepage": "/sys/kernel/mm/transparent_hugepage/enabled",
}
_PACKAGES = ("layerfs", "btrfsutil", "zstandard", "isal")
_PROGRAMS = (("git", "--version"), ("cc", "--version"), ("tar", "--version"))


def take(places: Sequence[Place]) -> Fingerprint:
    """Look at the machine, and give it the places that were made on it."""
    return Fingerprint(
        cpu=_processor(),
        cores=len(os.sched_getaffinity(0)),
        memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        architecture=platform.machine(),
        kernel=platform.release(),
        system=platform.freedesktop_os_release().get("PRETTY_NAME", "") if Path("/etc/os-release").exists() else "",
        virtualization=_virtualization(),
        governor=_text(Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")),
        user=_user(),
        load=os.getloadavg()[0],
        clock_resolution=clock.resolution(),
        clock_cost=clock.overhead(),
        versions=tuple(_versions()),
        settings=tuple(_settings()),
        places=tuple(places),
    )


def _user() -> str:
    if not userns.is_initial():
        return "user namespace"
    return "root" if os.geteuid() == 0 else "ordinary user"


def _processor() -> str:
    found = re.search(r"^(?:model name|Model|cpu model)\s*:\s*(.+)$", _text(Path("/proc/cpuinfo")), re.MULTILINE)
    return found[1].strip() if found else platform.processor()


def _virtualization() -> str:
    """Return what the machine runs in, or "" for none that shows."""
    if re.search(r"^flags\s*:.*\bhypervisor\b", _text(Path("/proc/cpuinfo")), re.MULTILINE):
        return _text(Path("/sys/hypervisor/type")) or _text(Path("/sys/class/dmi/id/sys_vendor")) or "a hypervisor"
    return ""


def _versions() -> list[Version]:
    found = [Version("python", platform.python_version()), Version("libc", " ".join(platform.libc_ver()))]
    for name in _PACKAGES:
        try:
            found.append(Version(name, metadata.version(name)))
        except metadata.PackageNotFoundError:
            continue
    for command in _PROGRAMS:
        try:
            said = process.run(command, package=command[0])
        except LayerfsError:
            continue
        found.append(Version(command[0], said.partition("\n")[0]))
    return found


def _settings() -> list[Version]:
    paths = {name: f"/proc/sys/{name.replace('.', '/')}" for name in _SETTINGS}
    texts = ((name, _text(Path(path))) for name, path in (paths | _MODULES).items())
    return [Version(name, text) for name, text in texts if text]


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # a kernel or machine that does not have it
        return ""

"""Whether this process may do more than the user who started it, and whom it trusts then.

Privileges are *raised* by a set-user-ID or set-group-ID program or by file capabilities (getauxval(3), ``AT_SECURE``).
The user who started such a program chose its environment and its working directory, and must not choose by these what
it runs or where it writes. Root by sudo(8) is not raised in this sense: sudo decides about the environment.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

SAFE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where programs are looked for when privileges were raised."""

_AT_SECURE = 23  # linux/auxvec.h
_ENTRY = struct.Struct("@LL")
_HARMLESS = ("LANG", "LANGUAGE", "TERM", "NO_COLOR", "TZ", "COLUMNS", "LINES")
_OTHERS_WRITE = 0o022
_EVERY_ID = ["0", "0", str((1 << 32) - 1)]


def raised() -> bool:
    """Tell whether privileges were raised when the program started, or are by the ids that it has now.

    What root starts has nothing to gain; the kernel sets ``AT_SECURE`` there too where a security module changes the
    domain, as it does for services.
    """
    if os.getuid() == 0:
        return False
    return os.getuid() != os.geteuid() or os.getgid() != os.getegid() or _at_secure()


def _at_secure() -> bool:
    try:
        with open("/proc/self/auxv", "rb") as file:
            data = file.read()
    except PermissionError:  # a process that has changed its user may not read its own
        return os.geteuid() != 0 and _has_capabilities()
    except OSError:  # no /proc
        return False
    whole = len(data) - len(data) % _ENTRY.size
    return bool(dict(_ENTRY.iter_unpack(data[:whole])).get(_AT_SECURE, 0))


def _has_capabilities() -> bool:
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        permitted = next((line.split()[1] for line in file if line.startswith("CapPrm:")), "0")
    return int(permitted, 16) != 0


def in_initial_namespace() -> bool:
    """Tell whether this process is in the initial user namespace, or one that maps every id to itself."""
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            return file.read().split() == _EVERY_ID
    except FileNotFoundError:  # a kernel without user namespaces
        return True


def environment() -> Mapping[str, str]:
    """Return the variables that may say where things are: none of those of a user whose privileges were raised."""
    return {} if raised() else os.environ


def home() -> Path:
    """Return the user's directory: as the environment says, but where privileges were raised as getpwuid(3) does."""
    from pathlib import Path  # noqa: PLC0415  `layerfs --help` needs none

    if not raised():
        return Path.home()
    import pwd  # noqa: PLC0415  hardly anybody's privileges are

    try:
        return Path(pwd.getpwuid(os.geteuid()).pw_dir)
    except KeyError:
        return Path("/")  # as login(1) has it


def forget_environment() -> None:
    """Where privileges were raised, keep of the environment only what concerns the terminal, with a safe ``PATH``."""
    if not raised():
        return
    kept = {name: os.environ[name] for name in _HARMLESS if name in os.environ}
    os.environ.clear()
    os.environ.update({**kept, "PATH": SAFE_PATH})


def is_trusted(directory: str) -> bool:
    """Tell whether root may run what lies in a directory: nobody but root can change it."""
    try:
        status = os.stat(directory)
    except OSError:
        return False
    return status.st_uid == 0 and not status.st_mode & _OTHERS_WRITE

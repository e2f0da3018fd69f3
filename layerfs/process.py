"""The one home of subprocesses: a list of words, never a shell, and an error that holds the program's last words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from layerfs import privilege
from layerfs.errors import CommandFailed, Unsupported, os_error

if TYPE_CHECKING:
    import subprocess

_LAST_WORDS = 2000
"""Characters of a failed program's standard error that go into the message."""


def require(tool: str, *, package: str) -> str:
    """Return the absolute path of a program; raise `Unsupported` that names the package to install."""
    import shutil  # noqa: PLC0415  4 ms with what it brings, and most calls run no program

    chosen = privilege.SAFE_PATH if privilege.raised() else None
    path = shutil.which(tool, path=chosen) or shutil.which(tool, path="/usr/sbin:/sbin:/usr/local/sbin")
    if path is None:
        raise Unsupported(f"the program {tool!r} is not installed", hint=f"apt-get install {package}")
    return path


def run(
    arguments: Sequence[str],
    *,
    package: str,
    env: Mapping[str, str] | None = None,
    timeout: float | None = 600,
    pass_fds: Sequence[int] = (),
    given: str = "",
) -> str:
    """Run a program to its end and return its standard output; ``given`` is its standard input.

    ``package`` is the Debian package that brings the program; ``timeout`` is in seconds; ``pass_fds`` are descriptors
    that it inherits. Raise `Unsupported` where it is missing and `CommandFailed` where it fails.
    """
    import subprocess  # noqa: PLC0415  as above

    command = [require(arguments[0], package=package), *arguments[1:]]
    try:
        done = subprocess.run(
            command,
            check=True,
            input=given,
            capture_output=True,
            text=True,
            errors="replace",
            env=env,
            timeout=timeout,
            pass_fds=pass_fds,
        )
    except subprocess.CalledProcessError as error:
        words = (error.stderr or error.stdout or "").strip()[-_LAST_WORDS:]
        raise CommandFailed(f"`{' '.join(arguments)}` failed with status {error.returncode}: {words}") from error
    except subprocess.TimeoutExpired as error:
        raise CommandFailed(f"`{' '.join(arguments)}` did not end within {timeout} s") from error
    return done.stdout


def start(arguments: Sequence[str], *, package: str) -> subprocess.Popen[bytes]:
    """Start a program that has this process's standard streams to itself until it ends; errors as for `run`."""
    import subprocess  # noqa: PLC0415  as above

    try:
        return subprocess.Popen([require(arguments[0], package=package), *arguments[1:]])
    except OSError as error:
        raise os_error(f"start {arguments[0]}", error) from error

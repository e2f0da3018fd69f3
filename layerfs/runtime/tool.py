"""The OCI runtimes of this host, runc and crun: which works here, and running a bundle by it.

Both take the same words (runtime-spec runtime.md; runc(8), crun(1)). Which of them works depends on the layout of the
control groups and on who calls, so it is found out by running a container of the host's own programs.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from layerfs import process
from layerfs.errors import CommandFailed, NotFound, PermissionDenied, Unsupported
from layerfs.image.config import ContainerConfig
from layerfs.kernel import temporary
from layerfs.kernel.children import shell_status
from layerfs.kernel.relay import signals_left_to_child
from layerfs.runtime.bundle import Bundle
from layerfs.runtime.container import Bind, Container, Limits
from layerfs.runtime.host import has_session, host_facts
from layerfs.runtime.spec import configuration
from layerfs.runtime.users import Account

NAMES: Final = ("runc", "crun")
"""The runtimes that are looked for, the first that works is taken; the packages of Debian have the same names."""
_MISSING: Final = re.compile(
    r"executable file .*not found|exec.*: (no such file or directory|not a directory)", re.IGNORECASE
)
_FORBIDDEN: Final = re.compile(r"exec.*: (permission denied|exec format error|is a directory)", re.IGNORECASE)
"""What runc and crun say of a command that cannot be executed: both hand on the words of execve(2)."""
_PROGRAMS: Final = ("usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "nix", "gnu")
_STATE: Final = Path("/run/layerfs")
_LONGEST_LOG: Final = 1 << 20
_TRIAL_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True)
class Runtime:
    """An OCI runtime: the name or path of its program."""

    program: str

    def run(self, bundle: Bundle) -> int:
        """Run the container of a bundle to its end and return its exit status, 128+n for one that signal n ended.

        It has this process's standard streams; the terminal's signals and those of `layerfs.kernel.relay` reach it.
        Nothing of it is left afterwards. Raise `NotFound` where its command is missing, `PermissionDenied` where it
        cannot be executed, `CommandFailed` with the runtime's words where the container cannot be set up.
        """
        with temporary.room("layerfs-state-") as private:
            log = private / "log"
            words = self._words(_state(private), log)
            try:
                with signals_left_to_child() as relay_to:
                    started = process.start(
                        [*words, "run", "--bundle", str(bundle.path), bundle.name], package=self.program
                    )
                    relay_to(started.pid)
                    status = shell_status(started.wait())
            finally:
                self._forget(bundle, words, _state(private))
            _raise_logged(self.program, log)
            return status

    def check(self) -> None:
        """Run nothing in a container of the host's programs; raise `Unsupported` that says why that fails here."""
        with temporary.room("layerfs-trial-") as place:
            bundle = Bundle(place, f"layerfs-trial-{os.getpid()}")
            bundle.path.chmod(0o711)
            bundle.root.mkdir(mode=0o755)
            wanted = Container(command=("/bin/true",), binds=_host_programs(bundle.root))
            host = host_facts(None, Limits(), bundle.name)
            document = configuration(wanted, ContainerConfig(), Account(0, 0, (), "/"), host)
            bundle.config.write_text(json.dumps(document), encoding="utf-8")
            words = [*self._words(Path(place, "state"), Path(place, "log")), "run", "--bundle", str(place), bundle.name]
            try:
                process.run(words, package=self.program, timeout=_TRIAL_SECONDS)
            except CommandFailed as error:
                reason = _logged(Path(place, "log")) or error.message
                raise Unsupported(f"{self.program} cannot run a container here: {reason}") from error

    def _words(self, state: Path, log: Path) -> list[str]:
        words = [self.program, "--root", str(state), "--log", str(log), "--log-format", "json"]
        return [*words, "--systemd-cgroup"] if has_session() else words

    def _forget(self, bundle: Bundle, words: list[str], state: Path) -> None:
        """Remove what a runtime leaves that was killed."""
        if (state / bundle.name).exists():
            process.run([*words, "delete", "--force", bundle.name], package=self.program)


def find_runtime(program: str | None = None) -> Runtime:
    """Return the runtime of this name or path, or one that works here; raise `Unsupported`.

    Which one works is tried once and remembered until the next boot.
    """
    if program is not None:
        process.require(program, package=program)
        return Runtime(program)
    installed = [name for name in NAMES if _is_installed(name)]
    if not installed:
        raise Unsupported("no OCI runtime is installed", hint="apt-get install runc")
    if len(installed) == 1:
        return Runtime(installed[0])
    memory = _memory()
    if memory is not None and (known := _read(memory)) in installed:
        return Runtime(known)
    found = _first_working(installed)
    if memory is not None:
        with suppress(OSError):
            memory.parent.mkdir(mode=0o700, exist_ok=True)
            memory.write_text(found.program, encoding="ascii")
    return found


def _first_working(names: Sequence[str]) -> Runtime:
    reasons: list[str] = []
    for runtime in map(Runtime, names):
        try:
            runtime.check()
        except Unsupported as error:
            reasons.append(error.message)
        else:
            return runtime
    raise Unsupported("; ".join(reasons), hint="`layerfs doctor` tries each; `layerfs shell` needs none")


def _memory() -> Path | None:
    """Return the file that tells which runtime works, in a directory that nobody else can write to; None for none."""
    if _is_root():
        return _STATE / "works"
    own = os.environ.get("XDG_RUNTIME_DIR")
    return Path(own, "layerfs", "works") if own else None


def _read(memory: Path) -> str:
    try:
        return memory.read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


def _is_root() -> bool:
    return os.geteuid() == 0 and os.access(_STATE.parent, os.W_OK)


def _is_installed(name: str) -> bool:
    try:
        process.require(name, package=name)
    except Unsupported:
        return False
    return True


def _host_programs(root: Path) -> tuple[Bind, ...]:
    """Return what shows the host's programs in an empty root, where links are made to lead as they do on the host."""
    binds: list[Bind] = []
    for name in _PROGRAMS:
        place = Path("/", name)
        if place.is_symlink():
            root.joinpath(name).symlink_to(place.readlink())
        elif place.is_dir():
            binds.append(Bind(str(place), str(place), read_only=True))
    return tuple(binds)


def _state(private: Path) -> Path:
    """Return where the runtime keeps its state: root's where the administrator looks for it."""
    return _STATE / "containers" if _is_root() else Path(private, "state")


def _raise_logged(program: str, log: Path) -> None:
    reason = _logged(log)
    if reason is None:
        return
    words = reason.rpartition("exec: ")[2]
    if _MISSING.search(reason):
        raise NotFound(f"the clone has no such program: {words}", hint="name it by its path, or set PATH by --env")
    if _FORBIDDEN.search(reason):
        raise PermissionDenied(f"the clone's program cannot be executed: {words}")
    raise CommandFailed(f"{program} could not run the container: {reason}", hint="`layerfs doctor` tries each runtime")


def _logged(log: Path) -> str | None:
    """Return the last error that a runtime logged as JSON, None if it logged none."""
    try:
        lines = log.read_text(encoding="utf-8", errors="replace")[-_LONGEST_LOG:].splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        entry = _entry(line)
        if entry.get("level") in {"error", "fatal"}:
            return str(entry.get("msg", "")).strip()
    return None


def _entry(line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}

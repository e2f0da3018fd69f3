"""The command as a subprocess on real stores."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from layerfs.command import cli
from layerfs.kernel import mountinfo
from tests.support import images as samples


@dataclass(frozen=True, slots=True)
class Done:
    """What came of a run."""

    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True)
class Command:
    """Run `layerfs` on one store and one driver: as a process of its own, or in this one, which is much faster."""

    store: Path
    backend: str
    environment: Mapping[str, str] = field(default_factory=dict)
    in_process: bool = False

    def run(self, *arguments: str | Path, env: Mapping[str, str] | None = None, **settings: Any) -> Done:  # noqa: ANN401  of subprocess.run
        """Run it to its end, whatever its exit status; with settings of ``subprocess.run`` always as a process."""
        words = [*([] if self.backend == "auto" else ["--backend", self.backend]), *map(str, arguments)]
        environment = {"LAYERFS_STORE": str(self.store), **self.environment, **(env or {})}
        if self.in_process and not settings:
            result = CliRunner().invoke(cli, words, prog_name="layerfs", env=environment)
            return Done(result.exit_code, result.stdout, result.stderr)
        program = [sys.executable, "-W", "error", "-m", "layerfs.command"]
        kept = {name: value for name, value in os.environ.items() if name not in {"LAYERFS_STORE", "NO_COLOR"}}
        defaults: dict[str, Any] = {"stdin": subprocess.DEVNULL, "timeout": 60, "capture_output": True, "text": True}
        done = subprocess.run([*program, *words], env={**kept, **environment}, check=False, **{**defaults, **settings})
        return Done(done.returncode, done.stdout, done.stderr)

    def __call__(self, *arguments: str | Path, **settings: Any) -> str:  # noqa: ANN401  of subprocess.run
        """Run it, demand success, and return its standard output without the last line end."""
        done = self.run(*arguments, **settings)
        assert done.returncode == 0, f"{arguments}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
        return str(done.stdout).rstrip("\n")

    def json(self, *arguments: str | Path) -> Any:  # noqa: ANN401  any document
        """Run it with ``--json`` and return the document, which must be the only thing on standard output."""
        return json.loads(self("--json", *arguments))

    def fails(self, status: int, *arguments: str | Path, **settings: Any) -> str:  # noqa: ANN401  of subprocess.run
        """Run it, demand this exit status and silence on standard output, and return its standard error."""
        done = self.run(*arguments, **settings)
        assert done.returncode == status, f"{arguments}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
        assert done.stdout == ""
        return str(done.stderr)


def is_mounted(path: Path) -> bool:
    """Tell whether something is mounted there; os.path.ismount does not see bind mounts of the same file system."""
    return bool(mountinfo.at(path))


@pytest.fixture(scope="session")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give an OCI layout of three layers, test:1, without programs."""
    return samples.write_layout(
        tmp_path_factory.mktemp("images") / "layout", [samples.BASE, samples.EDIT, samples.SHRINK]
    )


@pytest.fixture(scope="session")
def shell_layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give an OCI layout of one layer, shell:1, in which a shell runs."""
    path = tmp_path_factory.mktemp("images") / "shell"
    return samples.write_layout(path, [samples.with_busybox()], name="shell:1")


@pytest.fixture(params=["copy", pytest.param("overlay2", marks=pytest.mark.root)])
def backend(request: pytest.FixtureRequest) -> str:
    """Give a driver that works without preparation: copy for everybody, overlay2 for root."""
    name: str = request.param
    return name


@pytest.fixture
def layerfs(backend: str, fresh_dir: Path) -> Command:
    """Give the command on a store that is not there yet."""
    return Command(fresh_dir / "store", backend, in_process=True)


@pytest.fixture
def stocked(layerfs: Command, layout: Path) -> Command:
    """Give the command on a store with the image test:1 and its clone web."""
    layerfs("image", "import", layout)
    layerfs("clone", "test:1", "web")
    return layerfs


@pytest.fixture
def mounted(stocked: Command, fresh_dir: Path) -> Iterator[Path]:
    """Give the directory at which the clone web of `stocked` is mounted; it is unmounted at the end if it still is."""
    target = fresh_dir / "mnt"
    target.mkdir()
    stocked("mount", "web", target)
    yield target
    if is_mounted(target):
        stocked("umount", "web")

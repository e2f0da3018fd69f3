"""The tab key, on a real store and through a real bash."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.command.conftest import Command


def _completions(command: Command, *words: str) -> list[str]:
    """Return what the tab key offers for the last of words that the shell has not broken at colons."""
    environment = {
        "_LAYERFS_COMPLETE": "zsh_complete",
        "COMP_WORDS": shlex.join(("layerfs", *words[:-1])) + " " + words[-1],
    }
    shown = command("", env={**environment, "COMP_CWORD": str(len(words))})
    return shown.splitlines()[1::3]  # zsh gets kind, value and help, a line each


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["rm", ""], ["web", "worker"]),
        (["rm", "web", "wo"], ["worker"]),
        (["fork", "w"], ["web", "worker"]),
        (["snapshot", "x"], []),
        (["clone", ""], ["other:2", "test:1"]),
        (["image", "rm", "t"], ["test:1"]),
        (["image", "export", "test:1", "o"], ["other:2"]),
        (["diff", ""], ["other:2", "test:1", "web", "worker"]),
        (["commit", "we"], ["web"]),
    ],
)
def test_names_are_completed_from_the_store(stocked: Command, words: list[str], offered: list[str]) -> None:
    stocked("image", "tag", "test:1", "other:2")
    stocked("clone", "test:1", "worker")
    assert _completions(stocked, *words) == offered


def test_names_come_from_the_store_that_the_line_says(stocked: Command, tmp_path: Path) -> None:
    elsewhere = Command(tmp_path / "other", "auto")
    assert _completions(elsewhere, "--store", str(stocked.store), "rm", "") == ["web"]
    assert _completions(elsewhere, "rm", "") == []


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Give a directory with the command under its name, for a PATH."""
    directory = tmp_path / "bin"
    directory.mkdir()
    script = directory / "layerfs"
    script.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m layerfs.command "$@"\n')
    script.chmod(0o755)
    return directory


ASK = """
eval "$(layerfs completion bash)"
COMP_WORDS=({words}); COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
compopt() {{ :; }}
_layerfs_completion layerfs
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("layerfs rm w", ["web"]),
        ("layerfs image inspect t", ["test:1"]),
        ("layerfs clone test ':' ''", ["1"]),
        ("layerfs clone test ':' 1", ["1"]),
        ("layerfs clone test ':' 2", [""]),
        ("layerfs image inspect test ':' 1 --r", ["--raw"]),
    ],
)
def test_bash_completes_names_with_colons(stocked: Command, program: Path, words: str, offered: list[str]) -> None:
    environment = {**os.environ, "LAYERFS_STORE": str(stocked.store), "PATH": f"{program}:{os.environ['PATH']}"}
    shell = ["bash", "--norc", "-c", ASK.format(words=words)]
    done = subprocess.run(shell, env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.splitlines() == offered
    assert done.stderr == ""

"""What the documentation says is what the code does: quotes, examples, commands and tables."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from layerfs import errors
from layerfs.commands import BUILTINS

REPOSITORY = Path(__file__).parents[2]
PAGES = sorted(
    path for path in (*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")) if "_build" not in path.parts
)
BLOCK = re.compile(r"^```(?P<kind>[a-z]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, kind: str) -> list[str]:
    return [match["text"] for match in BLOCK.finditer(page.read_text()) if match["kind"] == kind]


def test_the_driver_guide_quotes_the_copy_driver() -> None:
    source = (REPOSITORY / "backends/layerfs_backends/copy.py").read_text()
    quoted = next(text for text in blocks(REPOSITORY / "CONTRIBUTING.md", "python") if text.startswith("class Copy"))

    assert source[source.index("class CopyDriver") :] == quoted, "run scripts/update_quotes.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_commands_on_a_page_exist(page: Path) -> None:
    verbs = {tuple(builtin.name.split(".")) for builtin in BUILTINS}
    lines = [line for text in blocks(page, "console") for line in text.splitlines() if line.startswith(("$ ", "# "))]
    for line in lines:
        words = [word for word in line.partition(" # ")[0].split()[1:] if not word.startswith("-")]
        if words[:1] != ["layerfs"] or "--store" in line.split()[:3] or len(words) == 1:
            continue
        assert tuple(words[1:2]) in verbs, line
        if any(verb[0] == words[1] and len(verb) == 2 for verb in verbs):
            assert tuple(words[1:3]) in verbs, line


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_python_on_a_page_compiles(page: Path) -> None:
    for text in blocks(page, "python"):
        compile(text, str(page), "exec", dont_inherit=True)


def test_links_between_files_of_the_repository_lead_somewhere() -> None:
    for page in REPOSITORY.glob("*.md"):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_table_of_exit_statuses_is_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "docs/extensions"))

    rows = import_module("layerfs_tables").exit_statuses()

    classes = {name: int(status) for status, name, _, _ in rows if name}
    assert classes["NotFound"] == errors.NotFound.exit_status
    assert len(classes) == len([1 for kind in vars(errors).values() if isinstance(kind, type)])
    assert all(meaning for *_, meaning in rows)


@pytest.mark.root
def test_the_example_in_the_readme_runs(fresh_dir: Path) -> None:
    environment = {**os.environ, "LAYERFS_STORE": str(fresh_dir / "store")}
    maker = REPOSITORY / "scripts/make_demo_image.py"
    subprocess.run([sys.executable, maker, fresh_dir / "demo-image"], check=True, env=environment)

    (example,) = blocks(REPOSITORY / "README.md", "python")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", example], check=True, env=environment, cwd=fresh_dir, capture_output=True
    )

    assert done.stdout.decode().splitlines() == ["modified /etc/motd"]
    assert (fresh_dir / "hello.tar").stat().st_size > 0

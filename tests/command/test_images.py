"""The verbs for images, on real stores."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import click
import pytest

from tests.command.conftest import Command
from tests.support import images as samples


def _digests(path: Path) -> set[str]:
    return {blob.name for blob in (path / "blobs/sha256").iterdir()}


def _manifest_digest(path: Path) -> str:
    digest: str = json.loads((path / "index.json").read_bytes())["manifests"][0]["digest"]
    return digest


def test_import_prints_the_images_and_makes_the_store(layerfs: Command, layout: Path) -> None:
    document = layerfs.json("image", "import", layout)
    assert [image["digest"] for image in document["images"]] == [_manifest_digest(layout)]
    (image,) = document["images"]
    assert image["names"] == ["test:1"]
    assert image["created"] == "2026-01-02T03:04:05+00:00"
    assert len(image["layers"]) == 3
    assert layerfs("image", "import", layout).endswith(" test:1")


def test_import_under_other_names(layerfs: Command, layout: Path) -> None:
    layerfs("image", "import", layout, "--name", "a:1", "-n", "b")
    assert layerfs("-q", "image", "ls").splitlines() == ["a:1", "b:latest"]


def test_ls_is_a_table_and_a_document(stocked: Command, layout: Path) -> None:
    headings, row = stocked("image", "ls").splitlines()
    assert headings.split() == ["NAME", "ID", "CREATED", "LAYERS", "SIZE"]
    assert row.startswith("test:1 ")
    assert _manifest_digest(layout).removeprefix("sha256:")[:12] in row
    assert row.endswith("KiB")
    (image,) = stocked.json("image", "ls")["images"]
    blobs = layout / "blobs/sha256"
    assert image["size"] == sum(blob.stat().st_size for blob in blobs.iterdir())


def test_an_empty_list_is_a_heading_or_an_empty_document(layerfs: Command, layout: Path) -> None:
    layerfs("image", "import", layout)
    layerfs("image", "rm", "test:1")
    assert len(layerfs("image", "ls").splitlines()) == 1
    assert layerfs("-q", "image", "ls") == ""
    assert layerfs.json("image", "ls") == {"images": []}


def test_inspect(stocked: Command, layout: Path) -> None:
    digest = _manifest_digest(layout)
    document = stocked.json("image", "inspect", "test:1")
    assert document["image"]["digest"] == digest
    assert document["config"]["config"]["Env"] == ["PATH=/bin:/usr/bin", "FROM_IMAGE=yes"]
    assert len(document["manifest"]["layers"]) == 3
    shown = stocked("image", "inspect", "test:1")
    assert f"Digest:      {digest}" in shown.splitlines()
    assert "FROM_IMAGE=yes" in shown
    raw = stocked("image", "inspect", "test:1", "--raw", "manifest")
    assert raw.encode() == (layout / "blobs/sha256" / digest.removeprefix("sha256:")).read_bytes()
    assert stocked.json("image", "inspect", "test:1", "--raw", "config") == document["config"]


def test_an_image_goes_by_any_unique_prefix_of_its_id(stocked: Command, layout: Path) -> None:
    digest = _manifest_digest(layout)
    for prefix in (digest, digest.removeprefix("sha256:"), digest[:19], digest.removeprefix("sha256:")[:5]):
        assert stocked.json("image", "inspect", prefix)["image"]["digest"] == digest


def test_history_is_newest_first(layerfs: Command, tmp_path: Path) -> None:
    steps = ["ADD root\t/", "RUN edit " + "x" * 100, "RUN \x1b[2Jshrink"]
    layers = [samples.BASE, samples.EDIT, samples.SHRINK]
    layerfs("image", "import", samples.write_layout(tmp_path / "layout", layers, history=steps))
    document = layerfs.json("image", "history", "test:1")["history"]
    assert [step["created_by"] for step in document] == steps[::-1]
    assert all(step["size"] > 0 and step["layer"].startswith("sha256:") for step in document)
    shown = layerfs("image", "history", "test:1")
    assert "\x1b" not in shown
    assert "\\x1b[2Jshrink" in shown
    assert "ADD root /" in shown
    assert "xxx..." in shown


def test_a_layer_without_history_is_a_step_too(layerfs: Command, tmp_path: Path) -> None:
    layers = [samples.BASE, samples.EDIT]
    layerfs("image", "import", samples.write_layout(tmp_path / "layout", layers, history=["only one"]))
    document = layerfs.json("image", "history", "test:1")["history"]
    assert [step["created_by"] for step in document] == ["", "only one"]


def test_tree_shows_each_layer_once(layerfs: Command, tmp_path: Path) -> None:
    samples_by_name = {
        "base:1": [samples.BASE],
        "edit:1": [samples.BASE, samples.EDIT],
        "deep:1": [samples.BASE, samples.EDIT, samples.SHRINK],
        "side:1": [samples.BASE, samples.SHRINK],
    }
    for number, (name, layers) in enumerate(samples_by_name.items()):
        layerfs("image", "import", samples.write_layout(tmp_path / str(number), layers, name=name))
    layers = layerfs.json("image", "tree")["layers"]
    by_image = {name: layer for layer in layers for name in layer["images"]}
    assert len(layers) == 4
    assert by_image["base:1"]["parent"] == ""
    assert by_image["deep:1"]["parent"] == by_image["edit:1"]["id"]
    assert by_image["side:1"]["parent"] == by_image["edit:1"]["parent"] == by_image["base:1"]["id"]
    lines = layerfs("image", "tree").splitlines()
    assert [line.split()[-1] for line in lines] == ["base:1", "edit:1", "deep:1", "side:1"]
    assert [line[:3] for line in lines[1:]] == ["├─ ", "│  ", "└─ "]


def test_tag_and_rm(layerfs: Command, layout: Path) -> None:
    layerfs("image", "import", layout)
    assert layerfs("image", "tag", "test:1", "other:2") == _manifest_digest(layout)
    assert layerfs("-q", "image", "ls").splitlines() == ["other:2", "test:1"]
    assert layerfs("image", "rm", "test:1") == "test:1"
    assert layerfs("-q", "image", "ls") == "other:2"
    assert layerfs.json("image", "rm", "other:2") == {"removed": ["other:2"]}
    assert layerfs("-q", "image", "ls") == ""
    assert "no image 'other:2'" in layerfs.fails(3, "image", "rm", "other:2")


def test_an_image_with_a_clone_is_kept(stocked: Command) -> None:
    error = stocked.fails(4, "image", "rm", "test:1")
    assert "web" in error
    assert stocked("-q", "image", "ls") == "test:1"


def test_export_gives_back_every_byte(stocked: Command, layout: Path, tmp_path: Path) -> None:
    assert stocked("image", "export", "test:1", "-o", tmp_path / "out", "--format", "oci-dir") == str(tmp_path / "out")
    assert _digests(tmp_path / "out") == _digests(layout)
    document = stocked.json("image", "export", "test:1", "-o", tmp_path / "out.tar")
    assert document == {"images": ["test:1"], "output": str(tmp_path / "out.tar"), "format": "oci-archive"}
    with tarfile.open(tmp_path / "out.tar") as archive:
        assert "index.json" in archive.getnames()
    stocked("image", "export", "test:1", "-o", tmp_path / "docker.tar", "--format", "docker-archive")
    with tarfile.open(tmp_path / "docker.tar") as archive:
        assert "manifest.json" in archive.getnames()


def test_what_was_exported_can_be_imported(stocked: Command, layout: Path, tmp_path: Path) -> None:
    stocked("image", "export", "test:1", "-o", tmp_path / "out.tar")
    other = Command(tmp_path / "other", "copy")
    assert other.json("image", "import", tmp_path / "out.tar")["images"][0]["digest"] == _manifest_digest(layout)


def test_a_damaged_blob_is_an_error_of_integrity_and_leaves_nothing(layerfs: Command, tmp_path: Path) -> None:
    path = samples.write_layout(tmp_path / "layout", [samples.BASE])
    largest = max((path / "blobs/sha256").iterdir(), key=lambda blob: blob.stat().st_size)
    largest.write_bytes(bytes([largest.read_bytes()[0] ^ 1]) + largest.read_bytes()[1:])
    error = layerfs.fails(7, "image", "import", path)
    assert largest.name[:12] in error
    assert layerfs("-q", "image", "ls") == ""


def test_what_is_no_image_is_refused(layerfs: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"no image")
    assert layerfs.run("image", "import", tmp_path / "file").returncode in {2, 3, 5, 7}
    assert "Traceback" not in layerfs.run("image", "import", tmp_path / "file").stderr
    assert "does not exist" in layerfs.fails(2, "image", "import", tmp_path / "missing")


def test_a_platform_that_is_none(layerfs: Command, layout: Path) -> None:
    assert "platform" in layerfs.fails(2, "image", "import", layout, "--platform", "a/b/c/d")


def test_an_image_can_be_imported_without_unpacking(layerfs: Command, layout: Path) -> None:
    layerfs("image", "import", layout, "--no-unpack")
    assert layerfs("clone", "test:1", "web") == "web"


def test_progress_is_for_terminals(layerfs: Command, layout: Path) -> None:
    quiet = layerfs.run("image", "import", layout)
    assert quiet.stderr == ""
    drawn = _on_a_terminal(Command(layerfs.store.parent / "second", layerfs.backend), ["image", "import", str(layout)])
    assert "import" in click.unstyle(drawn)
    assert "/" in drawn
    silent = _on_a_terminal(
        Command(layerfs.store.parent / "third", layerfs.backend), ["-q", "image", "import", str(layout)]
    )
    assert silent == ""


def _on_a_terminal(command: Command, words: list[str]) -> str:
    """Run it with a pseudo-terminal as its standard error, and return what came there."""
    control, terminal = pty.openpty()
    settings: dict[str, Any] = {"capture_output": False, "stdout": subprocess.DEVNULL, "stderr": terminal}
    done = command.run(*words, env={"TERM": "xterm", "COLUMNS": "100"}, **settings)
    assert done.returncode == 0
    os.close(terminal)
    seen = b""
    try:
        while part := os.read(control, 4096):
            seen += part
    except OSError:  # EIO: the other end is closed
        pass
    os.close(control)
    return seen.decode()


@pytest.mark.parametrize("verb", ["inspect", "history", "rm", "tag", "export"])
def test_an_image_that_is_not_there(stocked: Command, tmp_path: Path, verb: str) -> None:
    more = {"tag": ["x:1"], "export": ["-o", f"{tmp_path}/x"]}.get(verb, [])
    error = stocked.fails(3, "image", verb, "missing:1", *more)
    assert "missing:1" in error
    assert "hint: " in error
    assert not (tmp_path / "x").exists()


def test_limits_are_settings(layerfs: Command, layout: Path) -> None:
    said = layerfs.fails(7, "image", "import", layout, "--limit", "file_bytes=10K")
    assert "file_bytes=10240" in said
    assert "--limit file_bytes=" in said
    said = layerfs.fails(7, "image", "import", layout, "--limit", "entries=2", "--limit", "file_bytes=1G")
    assert "entries=2" in said
    layerfs("image", "import", layout, "--limit", "stream_bytes=1G", "--limit", "entries=100")


@pytest.mark.parametrize("text", ["entries", "entries=-1", "entries=2K", "=5", "fun=1", "file_bytes=much"])
def test_what_is_no_limit_is_refused(layerfs: Command, layout: Path, text: str) -> None:
    assert "limit" in layerfs.fails(2, "image", "import", layout, "--limit", text)

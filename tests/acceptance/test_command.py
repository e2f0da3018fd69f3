"""The installed command on a real Debian image, a fresh Python each time: as root and as an ordinary user."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance import trees
from tests.support import debian
from tests.support.rootless import Rootless

pytestmark = [pytest.mark.slow, pytest.mark.host]

Seen = tuple[bytes, str, int]
"""Path, type and mode, and modification time in nanoseconds."""

FIRST, SECOND = debian.REFERENCE, "debian:second"


def layerfs(store: Path, *words: str | Path) -> str:
    """Run it, demand success without a warning, and return what it prints."""
    # The module, not the script next to it: the first line of that names a Python that the user may not reach.
    done = subprocess.run(
        [sys.executable, "-m", "layerfs.command", "--store", store, *words],
        check=False,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    assert done.returncode == 0, f"{words}: status {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Warning" not in done.stderr
    return done.stdout.rstrip("\n")


def main_job(backend: str, store: Path, layout: Path, out: Path) -> tuple[set[Seen], set[str]]:
    """Do what the README promises; return what find saw in the clone, and the lines of `layerfs -q diff`."""
    layerfs(store, "--backend", backend, "image", "import", "--name", FIRST, layout)
    assert layerfs(store, "clone", FIRST, "box") == "box"
    assert layerfs(store, "shell", "box", "--", "sh", "-c", "id -u; . /etc/os-release; echo $NAME $FROM_IMAGE") == (
        "0\na file in place of a link yes"
    )
    found = layerfs(store, "shell", "box", "--", "find", "/", "-xdev", "-printf", r"%P\t%M\t%T@\0")
    edit = "echo hello >/etc/motd && rm -r /usr/share/doc/less /etc/issue.net && ln /etc/motd /root/link && perl -e 1"
    layerfs(store, "shell", "box", "--", "bash", "-c", edit)
    changes = set(layerfs(store, "-q", "diff", "box").splitlines())
    layerfs(store, "commit", "box", SECOND, "-m", "edited by a shell")
    layerfs(store, "image", "export", SECOND, "-o", out)
    layerfs(store, "rm", "box")
    assert layerfs(store, "-q", "ls") == ""
    return {seen(*line.rsplit("\t", 2)) for line in found.split("\0") if line}, changes


def seen(path: str, mode: str, time: str) -> Seen:
    """Return a line of find as `expected` has it; its time has ten digits behind the point."""
    seconds, _, fraction = time.partition(".")
    return os.fsencode(path), mode, int(seconds) * 10**9 + int(fraction[:9])


def expected(tree: trees.Tree, *, devices: bool) -> set[Seen]:
    return {
        (path, entry.mode, entry.mtime)
        for path, entry in tree.items()
        if is_image(path) and (devices or entry.mode[0] not in "bc")
    }


def is_image(path: bytes) -> bool:
    """Tell whether a path shows what the image has there, and not what a shell needs."""
    return path not in (b"", b".", b"etc/resolv.conf") and path.split(b"/")[0] not in (b"dev", b"proc", b"sys")


CHANGES = {
    "M /etc",
    "D /etc/issue.net",
    "A /root/link",
    "M /root",
    "M /usr/share/doc",
    "D /usr/share/doc/less",
}


def check_export(out: Path) -> None:
    assert shutil.which("skopeo"), "apt-get install skopeo"
    words = ["skopeo", "inspect", "--config", f"oci-archive:{out}:{SECOND}"]
    config = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE).stdout)
    assert len(config["rootfs"]["diff_ids"]) == debian.LAYERS + 1
    assert config["history"][-1]["comment"] == "edited by a shell"


@pytest.mark.root
def test_the_main_job_as_root(
    driver_name: str, driver_root: Path, debian_layout: Path, fresh_dir: Path, umoci_tree: trees.Tree
) -> None:
    out = fresh_dir / "out.tar"
    found, changes = main_job(driver_name, driver_root / "store", debian_layout, out)
    assert {one for one in found if is_image(one[0])} == expected(umoci_tree, devices=True)
    assert changes - {"A /etc/motd", "M /etc/motd"} == CHANGES
    check_export(out)


@pytest.mark.root  # the image is made by root, once
@pytest.mark.rootless
@pytest.mark.parametrize("backend", ["copy", "overlay2"])
def test_the_main_job_as_an_ordinary_user(
    backend: str, run_rootless: Rootless, rootless_dir: Path, debian_layout: Path, umoci_tree: trees.Tree
) -> None:
    """Files belong to the user alone and devices are left out; the rest of the image is there, and its programs run."""
    layout, out = Path(shutil.copytree(debian_layout, rootless_dir / "layout")), rootless_dir / "out.tar"
    subprocess.run(["chmod", "--recursive", "a+rX", layout], check=True)  # umoci lets only the owner read it
    found, changes = run_rootless(main_job, backend, rootless_dir / "store", layout, out)
    assert {one for one in found if is_image(one[0])} == expected(umoci_tree, devices=False)
    assert changes - {"A /etc/motd", "M /etc/motd"} == CHANGES
    check_export(out)

"""Make a small real image out of what this machine has: busybox where it is there, else the Python that runs this.

Four layers: the programs, some files of this machine, changes and deletions in them, and a directory that replaces
another. The image is an OCI image layout, and `/demo/change` in it makes the changes that `scripts/demo` shows.

    make_demo_image.py [--python] DIRECTORY [NAME]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from layerfs import process, tree
from layerfs.contract import LayerRoot, Whiteouts
from layerfs.image.blobs import BlobStore
from layerfs.image.config import ContainerConfig, History, ImageConfig
from layerfs.image.descriptor import Descriptor
from layerfs.image.manifest import Index, Manifest
from layerfs.image.media_types import LAYER_MEDIA_TYPES
from layerfs.image.platform import Platform
from layerfs.kernel import userns
from layerfs.layer.changes import changes
from layerfs.layer.compression import Compression
from layerfs.layer.digest import Digest
from layerfs.layer.write import write_layer

CREATED = datetime(2026, 1, 1, tzinfo=UTC)
"""The image's date: fixed, so that the configuration does not depend on when it was made."""

REF_NAME = "org.opencontainers.image.ref.name"

BUSYBOX_CHANGE = """#!/bin/sh
set -e
echo "changed in the clone" >> /etc/motd
echo "made in the clone" > /etc/made-here
rm -r /data/licences
mv /data/notes /data/notes-renamed
chmod 600 /etc/passwd
"""

BUSYBOX_SHOW = """#!/bin/sh
cat /etc/motd
echo "$(ls /data | wc -l) directories in /data, $(ls /data/notes-renamed | wc -l) notes"
"""

PYTHON_CHANGE = """#!{python}
import os, shutil
with open("/etc/motd", "a") as file:
    file.write("changed in the clone\\n")
with open("/etc/made-here", "w") as file:
    file.write("made in the clone\\n")
shutil.rmtree("/data/licences")
shutil.copytree("/data/notes", "/data/notes-renamed", symlinks=True)
shutil.rmtree("/data/notes")
os.chmod("/etc/passwd", 0o600)
"""

PYTHON_SHOW = """#!{python}
import os
print(open("/etc/motd").read(), end="")
print(len(os.listdir("/data")), "directories in /data,", len(os.listdir("/data/notes-renamed")), "notes")
"""


@dataclass(frozen=True, slots=True)
class Step:
    """One layer: what the history says of it, and what it does to the tree."""

    name: str
    act: Callable[[Path], None]


def steps(*, python: bool) -> tuple[Step, ...]:
    """Return the layers of the image, the lowest first; ``python`` leaves busybox out even where it is."""
    busybox = None if python else _static_busybox()
    if busybox is None:
        return (
            Step("the running Python", add_python),
            *_common(*(text.format(python=_python()) for text in (PYTHON_CHANGE, PYTHON_SHOW))),
        )
    return (Step("busybox", lambda root: add_busybox(root, busybox)), *_common(BUSYBOX_CHANGE, BUSYBOX_SHOW))


def _common(change: str, show: str) -> tuple[Step, ...]:
    return (
        Step("files of this machine", lambda root: add_files(root, change, show)),
        Step("changes and deletions", change_files),
        Step("one directory in the place of another", replace_directory),
    )


def add_busybox(root: Path, busybox: Path) -> None:
    """Install busybox with a link for each of its programs, some of them hard."""
    directory = root / "bin"
    directory.mkdir()
    shutil.copy(busybox, directory / "busybox")
    for number, name in enumerate(process.run([str(busybox), "--list"], package="busybox-static").split()):
        if name == "busybox":
            continue
        if number % 10 == 0:
            os.link(directory / "busybox", directory / name)
        else:
            (directory / name).symlink_to("busybox")


def add_python(root: Path) -> None:
    """Copy the interpreter, its standard library and the shared libraries of both."""
    python, library = _python(), Path(sysconfig.get_path("stdlib"))
    extensions = sorted((library / "lib-dynload").glob("*.so"))
    for file in sorted({python, *_shared_libraries(python, *extensions)}):
        _copy(file, root)
    skipped = shutil.ignore_patterns(
        "__pycache__", "test", "tests", "site-packages", "dist-packages", "config-*", "*.a"
    )
    shutil.copytree(library, root / library.relative_to("/"), symlinks=True, ignore=skipped)


def add_files(root: Path, change: str, show: str) -> None:
    """Add a few files of /etc, the licences that Debian has, notes, and the programs that change and show them."""
    for name in ("etc", "root", "tmp", "proc", "sys", "dev", "data", "data/notes", "data/old", "demo"):
        (root / name).mkdir(exist_ok=True)
    (root / "tmp").chmod(0o1777)
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    (root / "etc/motd").write_text("an image made by layerfs\n")
    licences = Path("/usr/share/common-licenses")
    if licences.is_dir():
        shutil.copytree(licences, root / "data/licences", symlinks=True)
    else:
        (root / "data/licences").mkdir()
    for number in range(100):
        (root / f"data/notes/{number}").write_text(f"note {number}\n" * number)
        (root / f"data/old/{number}").write_text("old\n")
    for name, text in (("change", change), ("show", show)):
        (root / "demo" / name).write_text(text)
        (root / "demo" / name).chmod(0o755)


def change_files(root: Path) -> None:
    """Delete some notes, change others, and add to the message of the day."""
    for number in range(0, 100, 3):
        (root / f"data/notes/{number}").unlink()
    for number in range(1, 100, 10):
        (root / f"data/notes/{number}").write_text("a note that was changed by a later layer\n")
    with (root / "etc/motd").open("a") as file:
        file.write("its third layer changes and deletes\n")


def replace_directory(root: Path) -> None:
    """Remove a directory with all that is in it, and make a new one of the same name."""
    shutil.rmtree(root / "data/old")
    (root / "data/old").mkdir()
    (root / "data/old/new").write_text("only this is left\n")


def write_image(layout: Path, name: str, made_by: tuple[Step, ...]) -> Digest:
    """Make the image as an OCI image layout and return the digest of its manifest."""
    blobs = BlobStore(layout / "blobs")
    layers, diff_ids, history = [], [], []
    for step, before, after in _trees(made_by):
        with blobs.writer() as blob:
            written = write_layer(
                changes(before, after), LayerRoot(after, Whiteouts.REMOVE), blob, compression=Compression.GZIP
            )
            blob.commit(written.digest)
        layers.append(Descriptor(LAYER_MEDIA_TYPES[Compression.GZIP], written.digest, written.size))
        diff_ids.append(written.diff_id)
        history.append(History(CREATED, f"make_demo_image.py: {step.name}"))
    config = ImageConfig.build(
        diff_ids,
        platform=Platform.host(),
        created=CREATED,
        config=ContainerConfig(cmd=("/demo/change",), env=("PATH=/bin:/usr/bin",), workdir="/"),
        history=history,
    )
    manifest = Manifest.build(config.descriptor(), layers)
    for document in (config.raw, manifest.raw):
        blobs.put_bytes(document)
    (layout / "blobs/ingest").rmdir()
    (layout / "index.json").write_bytes(Index.build([manifest.descriptor.with_annotations({REF_NAME: name})]).raw)
    (layout / "oci-layout").write_text(json.dumps({"imageLayoutVersion": "1.0.0"}))
    return manifest.digest


def _trees(layers: tuple[Step, ...]) -> Iterator[tuple[Step, Path | None, Path]]:
    """Yield each step with the tree before it (None before the first) and after it."""
    with tempfile.TemporaryDirectory(prefix="layerfs-demo-") as scratch:
        before = None
        for number, step in enumerate(layers):
            after = Path(scratch, str(number))
            if before is None:
                after.mkdir()
            else:
                tree.copy_tree(before, after)
            after.chmod(0o755)
            step.act(after)
            yield step, before, after
            before = after


def _static_busybox() -> Path | None:
    """Return a busybox that needs no shared library: one that does would have to bring it along."""
    found = shutil.which("busybox")
    if found is None:
        return None
    linked = subprocess.run(["ldd", found], check=False, capture_output=True, text=True)
    return Path(found) if linked.returncode else None  # "not a dynamic executable"


def _python() -> Path:
    """Return the interpreter itself, not the link in a virtual environment."""
    return Path(sys.executable).resolve()


def _shared_libraries(*files: Path) -> set[Path]:
    """Return what ldd finds, as the names by which the loader will look for it."""
    words = process.run(["ldd", *map(str, files)], package="libc-bin").split()
    return {Path(word) for word in words if word.startswith("/") and not word.endswith(":")}


def _copy(file: Path, root: Path) -> None:
    target = root / file.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(file, target)


def main() -> None:
    """Make the image named on the command line, and print its digest."""
    parser = argparse.ArgumentParser(description="Make a small image out of files of this machine.")
    parser.add_argument("--python", action="store_true", help="from the running Python, not from busybox")
    parser.add_argument("layout", type=Path, help="the directory to make: an OCI image layout")
    parser.add_argument("name", nargs="?", default="demo", help="the image's name")
    given = parser.parse_args()
    if os.geteuid() != 0:
        userns.enter()  # so that the files of the image belong to root
    os.umask(0o022)
    given.layout.mkdir(parents=True)
    print(write_image(given.layout, given.name, steps(python=given.python)))


if __name__ == "__main__":
    main()

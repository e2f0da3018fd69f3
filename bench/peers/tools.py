"""The tools that are compared, each with what it takes from an image on disk to a root that a container could start in.

A *peer* is one way to do the work. Container tools verify the digests and keep what they need to make more containers;
`tar` and the like only unpack, and say what the machine can do at best.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from peers.inputs import Case
from peers.layout import TAG, archive_of, blobs_of
from peers.meter import Failed, Meter

IMAGE = "localhost/bench:bench"
_START = 30
"""Seconds that containerd may take to start and to end."""


Needs = Mapping[str, str]
"""Programs, and the Debian packages that bring them."""


class Kind(StrEnum):
    """What a peer counts as in the bars."""

    OURS = "layerfs"
    CONTAINER = "container tool"
    REFERENCE = "reference"


@dataclass(slots=True)
class Run:
    """One run: its input, the empty directory that everything goes to, and what measures it."""

    case: Case
    compression: str
    place: Path
    meter: Meter = field(default_factory=Meter)

    @property
    def layout(self) -> Path:
        """Return the OCI layout."""
        return self.case.layout(self.compression)

    def directory(self, name: str) -> Path:
        """Make a directory in the place."""
        path = self.place / name
        path.mkdir(exist_ok=True)
        return path


class Peer(Protocol):
    """One tool at one kind of work. ``needs`` are its programs, with the packages that bring them."""

    name: str
    kind: Kind
    needs: Needs
    compressions: tuple[str, ...]

    def ready(self, run: Run) -> AbstractContextManager[None]:
        """Make ready what is not measured."""
        ...

    def work(self, run: Run) -> Path | None:
        """Do what is measured; return the root that came of it where there is one."""
        ...


BOTH = ("gzip", "zstd")


class _Plain:
    """What most peers have in common."""

    kind = Kind.CONTAINER
    compressions: tuple[str, ...] = BOTH

    def ready(self, run: Run) -> AbstractContextManager[None]:  # noqa: ARG002  the interface
        """Nothing."""
        return nullcontext()


# -- from an image to a mounted root -----------------------------------------------------------------------------------

_LIBRARY = """
import sys
from pathlib import Path
import layerfs
with layerfs.open(sys.argv[1]) as store:
    store.import_image(Path(sys.argv[2]), names=["bench"])
    store.clone("bench", "clone").mount(Path(sys.argv[3]))
"""


class Library(_Plain):
    """layerfs as a runtime uses it: one Python process, its start included."""

    kind = Kind.OURS
    needs: Needs = MappingProxyType({})

    def __init__(self, name: str = "layerfs", *, archive: bool = False) -> None:
        self.name = name
        self._archive = archive

    def work(self, run: Run) -> Path:
        """Import, clone and mount."""
        root = run.directory("root")
        source = archive_of(run.layout) if self._archive else run.layout
        run.meter.environment = python(run)
        run.meter.run(sys.executable, "-c", _LIBRARY, run.place / "store", source, root)
        return root


def layerfs(run: Run, *words: str | Path) -> str:
    """Run the command."""
    run.meter.environment = python(run)
    return run.meter.run(sys.executable, "-m", "layerfs.command", "--store", run.place / "store", *words)


def python(run: Run) -> dict[str, str]:
    """Let Python keep its bytecode, as that of an installed package is kept, but beside the place."""
    return {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(run.place.parent / "bytecode")}


class Commands(_Plain):
    """layerfs as somebody at a terminal uses it: three commands."""

    name = "layerfs commands"
    kind = Kind.OURS
    needs: Needs = MappingProxyType({})

    def work(self, run: Run) -> Path:
        """Import, clone and mount."""
        root = run.directory("root")
        layerfs(run, "image", "import", run.layout, "--name", "bench")
        layerfs(run, "clone", "bench", "clone")
        layerfs(run, "mount", "clone", root)
        return root


class Containerd(_Plain):
    """containerd with its overlayfs snapshotter; the server is ours alone and counts."""

    needs: Needs = MappingProxyType({"containerd": "containerd", "ctr": "containerd"})

    def __init__(self, name: str, *, pigz: bool) -> None:
        self.name = name
        self.compressions: tuple[str, ...] = ("gzip",) if pigz else BOTH
        self._environment = {} if pigz else {"CONTAINERD_DISABLE_PIGZ": "1"}
        if pigz:
            self.needs = {**self.needs, "unpigz": "pigz"}

    @contextmanager
    def ready(self, run: Run) -> Iterator[None]:
        """Start a server with directories of its own, and end it."""
        settings = run.place / "containerd.toml"
        settings.write_text(
            f'version = 2\nroot = "{run.place}/root"\nstate = "{run.place}/state"\n'
            f'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]\n'
            f'[grpc]\naddress = "{run.place}/socket"\n[ttrpc]\naddress = "{run.place}/ttrpc"\n'
        )
        log = (run.place / "log").open("wb")
        with (
            log,
            subprocess.Popen(
                ["containerd", "--config", settings], stdout=log, stderr=log, env={**os.environ, **self._environment}
            ) as server,
        ):
            try:
                self._wait(run, server)
                run.meter.daemons = (server.pid,)
                yield
            finally:
                server.terminate()
                server.wait(_START)

    def _wait(self, run: Run, server: subprocess.Popen[bytes]) -> None:
        end = time.monotonic() + _START
        while time.monotonic() < end and server.poll() is None:
            time.sleep(0.1)
            try:
                self._ctr(run, "version")
            except Failed:
                continue
            return
        raise Failed(f"containerd does not start: {(run.place / 'log').read_text()[-500:]}")

    @staticmethod
    def _ctr(run: Run, *words: str | Path) -> str:
        return run.meter.run("ctr", "--address", run.place / "socket", *words)

    def work(self, run: Run) -> Path:
        """Import the archive, which unpacks it, and mount a writable snapshot."""
        root = run.directory("mounted")
        self._ctr(run, "images", "import", "--base-name", "localhost/bench", archive_of(run.layout))
        self._ctr(run, "images", "mount", "--rw", IMAGE, root)
        return root


class Storage(_Plain):
    """containers/storage with its overlay driver, filled by skopeo or by podman."""

    def __init__(self, name: str, *, podman: bool) -> None:
        self.name = name
        self._podman = podman
        self.needs: Needs = {"podman": "podman"} if podman else {"skopeo": "skopeo", "podman": "podman"}

    def work(self, run: Run) -> Path:
        """Copy or load the image, and mount it."""
        options = storage_options(run)
        if self._podman:
            load = ("load", "--quiet", "--signature-policy", policy(run), "--input", archive_of(run.layout))
            name = run.meter.run("podman", *options, *load).split()[-1]
        else:
            name = IMAGE
            copy_into_storage(run, run.layout)
        return Path(run.meter.run("podman", *options, "image", "mount", name).split()[-1])


def storage_options(run: Run) -> tuple[str | Path, ...]:
    """Return the options that keep containers/storage, and with its settings all of podman, inside the place."""
    settings, temporary = run.place / "containers.conf", run.directory("tmp")
    settings.write_text(f'[engine]\nlock_type = "file"\nevents_logger = "none"\ntmp_dir = "{temporary}"\n')
    run.meter.environment = {"CONTAINERS_CONF": str(settings), "TMPDIR": str(temporary)}
    return "--root", run.place / "storage", "--runroot", run.place / "run", "--storage-driver", "overlay"


def policy(run: Run) -> Path:
    """Write the policy that trusts every image."""
    path = run.place / "policy.json"
    path.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
    return path


def copy_into_storage(run: Run, layout: Path) -> None:
    """Let skopeo fill containers/storage."""
    target = f"containers-storage:[overlay@{run.place / 'storage'}+{run.place / 'run'}]{IMAGE}"
    run.meter.run("skopeo", "--policy", policy(run), "copy", "--quiet", f"oci:{layout}:{TAG}", target)


class Umoci(_Plain):
    """umoci, which unpacks to a plain directory and keeps no layers: there is nothing to mount."""

    name = "umoci"
    needs: Needs = MappingProxyType({"umoci": "umoci"})
    compressions: tuple[str, ...] = ("gzip",)

    def work(self, run: Run) -> Path:
        """Unpack."""
        run.meter.run("umoci", "unpack", "--image", f"{run.layout}:{TAG}", run.place / "bundle")
        return run.place / "bundle/rootfs"


class Tar(_Plain):
    """A tar program that unpacks every layer into one directory, and leaves whiteouts lying there as files."""

    kind = Kind.REFERENCE

    def __init__(self, name: str, needs: Needs, compression: str, *words: str) -> None:
        self.name = name
        self.needs = needs
        self.compressions: tuple[str, ...] = (compression,) if compression else BOTH
        self._words = words

    def work(self, run: Run) -> Path:
        """Unpack."""
        root = run.directory("root")
        for blob in blobs_of(run.layout):
            run.meter.run(*self._words, "-xpf", blob, "-C", root)
        return root


_TAR = ("tar", "--numeric-owner")
UNPACK: tuple[Peer, ...] = (
    Library(),
    Library("layerfs archive", archive=True),
    Commands(),
    Containerd("containerd", pigz=False),
    Containerd("containerd, unpigz", pigz=True),
    Storage("skopeo", podman=False),
    Storage("podman load", podman=True),
    Umoci(),
    Tar("tar -I igzip", {"tar": "tar", "igzip": "isal"}, "gzip", *_TAR, "-I", "igzip"),
    Tar("tar -I pigz", {"tar": "tar", "pigz": "pigz"}, "gzip", *_TAR, "-I", "pigz"),
    Tar("tar -I zstd", {"tar": "tar", "zstd": "zstd"}, "zstd", *_TAR, "-I", "zstd"),
    Tar("bsdtar", {"bsdtar": "libarchive-tools"}, "", "bsdtar", "--numeric-owner"),
)

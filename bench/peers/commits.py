"""The tools that make a layer of what changed, each in a container of its own that is made ready unmeasured."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

from peers.layout import TAG
from peers.meter import Meter
from peers.tools import BOTH, IMAGE, Kind, Needs, Peer, Run, copy_into_storage, layerfs, policy, storage_options


class Layerfs:
    """`Clone.commit` in a Python process of its own."""

    kind = Kind.OURS
    name = "layerfs"
    needs: Needs = MappingProxyType({})
    compressions: tuple[str, ...] = BOTH

    @contextmanager
    def ready(self, run: Run) -> Iterator[None]:
        """Put the changes into a clone."""
        root = run.directory("root")
        layerfs(run, "image", "import", run.case.base, "--name", "bench")
        layerfs(run, "clone", "bench", "clone")
        layerfs(run, "mount", "clone", root)
        change(run, root)
        layerfs(run, "umount", "clone")
        yield

    def work(self, run: Run) -> None:
        """Commit."""
        layerfs(run, "commit", "clone", "new", "--compression", run.compression)


class Umoci:
    """`umoci repack` of a bundle."""

    kind = Kind.CONTAINER
    name = "umoci repack"
    needs: Needs = MappingProxyType({"umoci": "umoci"})
    compressions: tuple[str, ...] = ("gzip",)

    @contextmanager
    def ready(self, run: Run) -> Iterator[None]:
        """Unpack the base from a copy of its layout, and change it."""
        shutil.copytree(run.case.base, run.place / "layout")
        run.meter.run("umoci", "unpack", "--image", self._image(run), run.place / "bundle")
        change(run, run.place / "bundle/rootfs")
        yield

    @staticmethod
    def _image(run: Run, tag: str = TAG) -> str:
        return f"{run.place / 'layout'}:{tag}"

    def work(self, run: Run) -> None:
        """Repack."""
        run.meter.run("umoci", "repack", "--image", self._image(run, "new"), run.place / "bundle")


class Buildah:
    """`buildah commit`, to an OCI layout with compressed layers, or to its own storage without compression."""

    kind = Kind.CONTAINER
    needs: Needs = MappingProxyType({"buildah": "buildah", "skopeo": "skopeo"})

    def __init__(self, *, storage: bool) -> None:
        self.name = "buildah commit to its storage" if storage else "buildah commit"
        self.compressions: tuple[str, ...] = ("gzip",)
        self._storage = storage

    @contextmanager
    def ready(self, run: Run) -> Iterator[None]:
        """Change a working container."""
        copy_into_storage(run, run.case.base)
        self._buildah(run, "from", "--pull-never", "--signature-policy", policy(run), "--name", "clone", IMAGE)
        change(run, Path(self._buildah(run, "mount", "clone").strip()))
        self._buildah(run, "umount", "clone")
        yield

    @staticmethod
    def _buildah(run: Run, *words: str | Path) -> str:
        return run.meter.run("buildah", *storage_options(run), *words)

    def work(self, run: Run) -> None:
        """Commit."""
        target = "localhost/new" if self._storage else f"oci:{run.place / 'out'}:{TAG}"
        options = ("--quiet", "--format", "oci", "--signature-policy", policy(run))
        self._buildah(run, "commit", *options, f"--disable-compression={str(self._storage).lower()}", "clone", target)


class Pipeline:
    """tar, a compressor and a digest in a pipeline: no list of changes, one digest, no store."""

    kind = Kind.REFERENCE

    def __init__(self, compression: str, package: str, *compressor: str) -> None:
        self.name = f"tar | {' '.join(compressor)} | sha256sum"
        self.needs: Needs = {"tar": "tar", compressor[0]: package}
        self.compressions: tuple[str, ...] = (compression,)
        self._compressor = compressor

    @contextmanager
    def ready(self, run: Run) -> Iterator[None]:
        """Unpack the changes alone."""
        change(run, run.directory("root"))
        yield

    def work(self, run: Run) -> None:
        """Write to the digest, and keep nothing."""
        tar = ("tar", "--numeric-owner", "--sort=name", "-cf", "-", "-C", run.place / "root", ".")
        run.meter.pipe(tar, self._compressor, ("sha256sum",))


def change(run: Run, root: Path) -> None:
    """Unpack the upper layer over a root."""
    Meter().run("tar", "--numeric-owner", "-xpf", run.case.layers[-1], "-C", root)


COMMIT: tuple[Peer, ...] = (
    Layerfs(),
    Umoci(),
    Buildah(storage=False),
    Buildah(storage=True),
    Pipeline("gzip", "pigz", "pigz"),
    Pipeline("gzip", "isal", "igzip"),
    Pipeline("zstd", "zstd", "zstd", "-3", "-T0"),
)

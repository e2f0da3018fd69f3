"""What brings an image from a registry to a mounted root: layerfs, containerd and podman, from the same registry.

The registry is Debian's docker-registry on the loopback, one for each image, started when it is first asked for and
ended with the program. Its own time counts for nobody.
"""

from __future__ import annotations

import atexit
import json
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import MappingProxyType

from peers.layout import TAG
from peers.meter import Failed
from peers.tools import BOTH, Containerd, Kind, Needs, Peer, Run, Storage, policy, python, storage_options

_START = 20.0
"""Seconds that a registry may take to start."""
_REGISTRY = {"docker-registry": "docker-registry", "skopeo": "skopeo"}


@cache
def served(layout: Path) -> str:
    """Return the name of the layout's image in a registry that has it, started if it must be."""
    root = Path(tempfile.mkdtemp(prefix="layerfs-bench-registry-", dir="/dev/shm"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{probe.getsockname()[1]}"
    config = {
        "version": "0.1",
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(root / "data")}},
        "http": {"addr": host},
    }
    (root / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    log = (root / "log").open("wb")
    running = subprocess.Popen(["docker-registry", "serve", root / "config.yml"], stdout=log, stderr=log)
    atexit.register(running.wait)
    atexit.register(running.terminate)
    _wait(host)
    name = f"{host}/bench/image:1"
    copy = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{layout}:{TAG}", f"docker://{name}"]
    subprocess.run(copy, check=True)
    return name


def _wait(host: str) -> None:
    address, _, port = host.partition(":")
    end = time.monotonic() + _START
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex((address, int(port))) == 0:
                return
        time.sleep(0.05)
    raise Failed(f"no registry answers at {host}")


class LayerfsPull:
    """layerfs, as one command and two more."""

    name = "layerfs"
    kind = Kind.OURS
    needs: Needs = MappingProxyType(_REGISTRY)
    compressions: tuple[str, ...] = BOTH

    @contextmanager
    def ready(self, run: Run) -> Iterator[None]:
        """Have the registry serve it."""
        served(run.layout)
        yield

    def work(self, run: Run) -> Path:
        """Pull, clone and mount."""
        root = run.directory("root")
        run.meter.environment = python(run)
        run.meter.run(sys.executable, "-c", _PULL, run.place / "store", served(run.layout), root)
        return root


_PULL = """
import sys
from pathlib import Path
import layerfs
with layerfs.open(sys.argv[1]) as store:
    store.pull_image(sys.argv[2], names=["bench"])
    store.clone("bench", "clone").mount(Path(sys.argv[3]))
"""


class ContainerdPull(Containerd):
    """containerd's own client and server."""

    needs: Needs = MappingProxyType({**Containerd.needs, **_REGISTRY})

    @contextmanager
    def ready(self, run: Run) -> Iterator[None]:
        """Start a server, and have the registry serve the image."""
        served(run.layout)
        with super().ready(run):
            yield

    def work(self, run: Run) -> Path:
        """Pull, which unpacks, and mount a writable snapshot."""
        root = run.directory("mounted")
        name = served(run.layout)
        self._ctr(run, "images", "pull", "--plain-http", name)
        self._ctr(run, "images", "mount", "--rw", name, root)
        return root


class PodmanPull(Storage):
    """Podman into containers/storage."""

    def __init__(self) -> None:
        super().__init__("podman pull", podman=True)
        self.needs: Needs = {**self.needs, **_REGISTRY}

    @contextmanager
    def ready(self, run: Run) -> Iterator[None]:
        """Have the registry serve it."""
        served(run.layout)
        yield

    def work(self, run: Run) -> Path:
        """Pull and mount."""
        options = storage_options(run)
        pull = ("pull", "--quiet", "--tls-verify=false", "--signature-policy", policy(run), served(run.layout))
        name = run.meter.run("podman", *options, *pull).split()[-1]
        return Path(run.meter.run("podman", *options, "image", "mount", name).split()[-1])


PULL: tuple[Peer, ...] = (
    LayerfsPull(),
    ContainerdPull("containerd", pigz=False),
    ContainerdPull("containerd, unpigz", pigz=True),
    PodmanPull(),
)

"""A container runtime: clone an image, run a command in the clone by runc, and tell what it changed.

python runtime.py STORE IMAGE COMMAND [ARGUMENT...]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import layerfs

MOUNTS = (
    ("/proc", "proc", ["nosuid", "noexec", "nodev"]),
    ("/dev", "tmpfs", ["nosuid", "mode=755"]),
    ("/sys", "sysfs", ["nosuid", "noexec", "nodev", "ro"]),
)


def configuration(image: layerfs.Image, command: Sequence[str]) -> dict[str, object]:
    """Return config.json of the OCI runtime specification: what runc is told."""
    config = image.config.config
    return {
        "ociVersion": "1.0.2",
        "root": {"path": "rootfs"},
        "hostname": "box",
        "process": {
            "args": list(command),
            "env": list(config.env),
            "cwd": config.workdir or "/",
            "user": {"uid": 0, "gid": 0},
        },
        "mounts": [{"destination": at, "type": kind, "source": kind, "options": how} for at, kind, how in MOUNTS],
        "linux": {"namespaces": [{"type": kind} for kind in ("pid", "ipc", "uts", "mount", "network")]},
    }


def run(store: layerfs.Store, name: str, command: Sequence[str]) -> tuple[int, list[layerfs.Change]]:
    """Run a command in a clone that is gone afterwards; return its exit status and what it changed."""
    image = store.image(name)
    with store.clone(name) as clone, tempfile.TemporaryDirectory() as bundle:
        root = Path(bundle, "rootfs")
        root.mkdir()
        Path(bundle, "config.json").write_text(json.dumps(configuration(image, command)))
        with clone.mounted(root):
            status = subprocess.run(["runc", "run", "--bundle", bundle, clone.name], check=False).returncode
        return status, list(clone.changes())


if __name__ == "__main__":
    with layerfs.open(sys.argv[1], create=False) as opened:
        exit_status, changes = run(opened, sys.argv[2], sys.argv[3:])
    for change in changes:
        print(change.kind, change.path.decode(errors="backslashreplace"), file=sys.stderr)
    sys.exit(exit_status)

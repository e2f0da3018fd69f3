"""A build cache: each step is an image named by what came before it and the command, and is built once.

python build_cache.py STORE IMAGE COMMAND...      each COMMAND is a line for /bin/sh
"""

from __future__ import annotations

import hashlib
import sys

import layerfs
from layerfs import NotFound

PREFIX = "build-cache"


def step(store: layerfs.Store, base: layerfs.Image, command: str) -> tuple[layerfs.Image, bool]:
    """Return the image of ``base`` after a command, and whether it was there already."""
    key = hashlib.sha256(f"{base.digest}\0{command}".encode()).hexdigest()
    name = f"{PREFIX}:{key[:40]}"
    try:
        return store.image(name), True
    except NotFound:
        pass
    with store.clone(base.digest) as clone:
        status = clone.run(["/bin/sh", "-c", command])
        if status:
            raise SystemExit(f"{command!r} ended with {status}")
        return clone.commit(name, message=command), False


def build(store: layerfs.Store, image: str, commands: list[str]) -> layerfs.Image:
    """Run all steps, each on top of the one before."""
    current = store.image(image)
    for command in commands:
        current, cached = step(store, current, command)
        print("cached" if cached else "built ", command)
    return current


if __name__ == "__main__":
    with layerfs.open(sys.argv[1], create=False) as opened:
        print(build(opened, sys.argv[2], sys.argv[3:]).digest)

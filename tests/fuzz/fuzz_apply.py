"""Fuzz the tar reader and `apply` by coverage, by hand and as root, for as long as one likes (tests/README.md).

pip install atheris
python -m tests.fuzz.fuzz_apply -max_total_time=3600 CORPUS_DIRECTORY
"""

from __future__ import annotations

import sys
import tempfile
from importlib import import_module
from pathlib import Path


def main() -> None:
    """Hand everything to atheris; a finding is written to a file crash-*, which is an argument to try it again."""
    atheris = import_module("atheris")  # by hand only, and no dependency
    with atheris.instrument_imports(include=["layerfs"]):
        hostile = import_module("tests.fuzz.hostile")
    with tempfile.TemporaryDirectory(prefix="layerfs-fuzz-", dir="/dev/shm") as place:

        def try_one(data: bytes) -> None:
            # Half of them are a layer as they are, half of them decide on one.
            stream = data[1:] if data[:1] < b"\x80" else hostile.layer(hostile.Choices(data[1:]))
            hostile.survive(Path(place), stream)

        atheris.Setup(sys.argv, try_one)
        atheris.Fuzz()


if __name__ == "__main__":
    main()

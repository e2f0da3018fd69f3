"""The images that are unpacked, made once and kept in the cache: from apt's packages, or from a seed.

``python`` is Debian with a layer of Python packages on top, ``big`` one file, ``small`` many layers with whiteouts. The
cache is ``layerfs-bench`` in the user's cache directory (XDG base directory specification).
"""

from __future__ import annotations

import io
import os
import random
import shutil
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from peers.layout import COMPRESSORS, write_layout
from peers.meter import Failed

PACKAGES = (
    "python3-full",
    "python3-sphinx",
    "python3-sympy",
    "python3-twisted",
    "python3-django",
)
"""What apt puts into the upper layer of ``python``: more than 15,000 files with what they need."""
BIG_SIZE = 500 * 10**6
SMALL_LAYERS = 128
_RECIPE = 1
"""Part of the names in the cache: a change to what is made here needs another."""
_SEED = 20
_EPOCH = "1700000000"
_OPTIONS = ("Acquire::Check-", "Acquire::http::Proxy", "Acquire::https::Proxy")
"""Starts of the names of apt settings without which the host would not reach its mirror."""
_TARGETS = "deb $(REPO_URI) $(RELEASE) $(COMPONENT)"
_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Case:
    """An image: its layouts by compression, and its layers as plain tars, the lowest first."""

    name: str
    place: Path
    layers: tuple[Path, ...]

    def layout(self, compression: str) -> Path:
        """Return the OCI layout with layers of this compression."""
        return self.place / compression

    @property
    def base(self) -> Path:
        """Return the OCI layout with the lowest layer alone, as gzip."""
        return self.place / "base"


def cache() -> Path:
    """Return the directory in which inputs are kept."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "layerfs-bench"


def get(name: str) -> Case:
    """Return a case, made first where the cache does not hold it."""
    place = cache() / f"{name}-{_RECIPE}"
    if not place.exists():
        cache().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache(), prefix=f"{name}-new-") as temporary:
            new = Path(temporary, "case")
            (new / "layers").mkdir(parents=True)
            CASES[name](new / "layers")
            for compression in COMPRESSORS:
                write_layout(sorted((new / "layers").iterdir()), compression, new / compression)
            write_layout(sorted((new / "layers").iterdir())[:1], "gzip", new / "base")
            new.rename(place)
    return Case(name, place, tuple(sorted((place / "layers").iterdir())))


# -- python ------------------------------------------------------------------------------------------------------------


def _python(layers: Path) -> None:
    """Make what mmdebstrap installs, and what more packages add to it."""
    with tempfile.TemporaryDirectory(dir=layers.parent) as work:
        base, full = Path(work, "base.tar"), Path(work, "full.tar")
        _bootstrap(base, ())
        _bootstrap(full, PACKAGES)
        shutil.copyfile(base, layers / "000-debian.tar")
        _added(base, full, layers / "001-python.tar")


def _bootstrap(archive: Path, packages: Sequence[str]) -> None:
    """Make a root file system from the host's own apt sources."""
    options = [line.removesuffix(";") for line in _said("apt-config", "dump").splitlines() if line.startswith(_OPTIONS)]
    sources = dict.fromkeys(_said("apt-get", "indextargets", "--format", _TARGETS, "Created-By: Packages").splitlines())
    words = ["mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", "--format=tar"]
    words += [f"--aptopt={option}" for option in options]
    words += [f"--include={','.join(packages)}"] if packages else []
    lines = "\n".join(line for line in sources if line.endswith(" main"))
    environment = {"SOURCE_DATE_EPOCH": _EPOCH, "TMPDIR": str(archive.parent)}
    _said(*words, "", str(archive), "-", text=lines, environment=environment)


def _said(*words: str, text: str = "", environment: dict[str, str] | None = None) -> str:
    """Run a program that makes an input, and return what it printed."""
    try:
        done = subprocess.run(
            words, check=True, input=text, capture_output=True, text=True, env={**os.environ, **(environment or {})}
        )
    except FileNotFoundError as error:
        raise Failed(f"{words[0]} is not installed") from error
    except subprocess.CalledProcessError as error:
        raise Failed(f"`{words[0]}` failed: {error.stderr.strip()[-800:]}") from error
    return done.stdout


def _added(base: Path, full: Path, layer: Path) -> None:
    """Write the entries of one tar that another does not have so; deletions are too few to matter here."""
    with tarfile.open(base) as archive:
        known = {_told(entry) for entry in archive}
    with tarfile.open(full) as archive, tarfile.open(layer, "w", format=tarfile.PAX_FORMAT) as target:
        for entry in archive:
            if entry.isdir() or _told(entry) not in known:
                target.addfile(entry, archive.extractfile(entry) if entry.isreg() else None)


def _told(entry: tarfile.TarInfo) -> tuple[object, ...]:
    return entry.name, entry.type, entry.mode, entry.uid, entry.gid, entry.size, int(entry.mtime), entry.linkname


# -- big ---------------------------------------------------------------------------------------------------------------


def _big(layers: Path) -> None:
    """Make one file that halves when it is compressed, as programs and libraries do."""
    chance = random.Random(_SEED)  # noqa: S311  seeded, to make the same again
    words = [chance.randbytes(chance.randrange(3, 12)) for _ in range(4096)]
    text = b"".join(chance.choices(words, k=1_000_000))
    with tempfile.TemporaryFile(dir=layers.parent) as file:
        left = BIG_SIZE
        while left > 0:
            start = chance.randrange(len(text) - _PIECE)
            mixed = text[start : start + 40_000] + chance.randbytes(25_536)
            file.write(mixed[:left])
            left -= len(mixed)
        file.seek(0)
        with tarfile.open(layers / "000-big.tar", "w") as archive:
            archive.addfile(_entry("big", size=BIG_SIZE), file)


# -- small -------------------------------------------------------------------------------------------------------------


def _small(layers: Path) -> None:
    """Make layers that bring twenty files, change two of lower layers, remove three, and now and then hide all."""
    chance = random.Random(_SEED)  # noqa: S311  seeded, to make the same again
    there: list[str] = []
    for number in range(SMALL_LAYERS):
        with tarfile.open(layers / f"{number:03d}.tar", "w") as archive:
            _directories(archive)
            if number % 16 == 15:  # noqa: PLR2004  one layer in sixteen
                archive.addfile(_entry(f"srv/{number % 4}/.wh..wh..opq"))
                there = [name for name in there if not name.startswith(f"srv/{number % 4}/")]
            for name in chance.sample(there, min(3, len(there))):
                there.remove(name)
                above, _, last = name.rpartition("/")
                archive.addfile(_entry(f"{above}/.wh.{last}"))
            changed = chance.sample(there, min(2, len(there)))
            brought = [f"srv/{chance.randrange(4)}/file-{number}-{index}" for index in range(20)]
            for name in sorted(changed + brought):
                content = chance.randbytes(500) * chance.randrange(1, 12)
                archive.addfile(_entry(name, size=len(content)), io.BytesIO(content))
            there += brought


def _directories(archive: tarfile.TarFile) -> None:
    for name in ("srv", *(f"srv/{index}" for index in range(4))):
        archive.addfile(_entry(name, kind=tarfile.DIRTYPE, mode=0o755))


def _entry(name: str, *, kind: bytes = tarfile.REGTYPE, mode: int = 0o644, size: int = 0) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.size, entry.mtime = kind, mode, size, int(_EPOCH)
    return entry


CASES: dict[str, Callable[[Path], None]] = {"python": _python, "big": _big, "small": _small}
"""The recipe of each case, which writes its layers as plain tars, named in their order."""


def count(root: Path) -> tuple[int, int]:
    """Return the regular files below a directory, and their bytes: the sign that a tool did all of the work."""
    files = size = 0
    todo = [os.fspath(root)]
    while todo:
        with os.scandir(todo.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    todo.append(entry.path)
                elif stat.S_ISREG((status := entry.stat(follow_symlinks=False)).st_mode):
                    files += 1
                    size += status.st_size
    return files, size

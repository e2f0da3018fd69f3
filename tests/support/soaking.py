"""Work for processes that share one store for a long time, and what a process holds before and after it."""

from __future__ import annotations

import errno
import gc
import os
import random
import tracemalloc
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Self

import layerfs
from layerfs.contract import DirectAccess

LOST_A_RACE = (layerfs.AlreadyExists, layerfs.NotFound, layerfs.FailedPrecondition, layerfs.InvalidArgument)
"""What a process may be told that met another one; anything else is a mistake."""


@dataclass(frozen=True, slots=True)
class Holding:
    """What a process holds: bytes of its own memory (RssAnon), what its descriptors refer to, its threads."""

    memory: int
    descriptors: tuple[str, ...]
    threads: int

    @classmethod
    def of(cls, pid: int) -> Self:
        """Look at a process (proc_pid_status(5))."""
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
        )
        return cls(int(status["RssAnon"].split()[0]) << 10, tuple(sorted(_descriptors(pid))), int(status["Threads"]))


def _descriptors(pid: int) -> Iterator[str]:
    for name in os.listdir(f"/proc/{pid}/fd"):
        with suppress(FileNotFoundError):  # closed meanwhile, or that of the list itself
            yield os.readlink(f"/proc/{pid}/fd/{name}").partition(":")[0]


def traced() -> int:
    """Return the bytes that Python has allocated since tracemalloc was started, rubbish collected first."""
    gc.collect()
    return tracemalloc.get_traced_memory()[0]


Act = Callable[[layerfs.Store, random.Random], object]


@dataclass(frozen=True, slots=True)
class Scene:
    """What the acts use beside the store: layouts to import, and a directory of the process's own."""

    layouts: tuple[Path, ...]
    own: Path

    def acts(self) -> Mapping[str, Act]:
        """Return everything that a process does with images and clones, under few names, so that many meet."""
        return {
            "import": self._import,
            "export": self._export,
            "write": _write,
            "mount": self._mount,
            "clone": lambda store, chance: store.clone(_image(chance), _clone(chance)),
            "fork": lambda store, chance: store.get_clone(_clone(chance)).fork(_clone(chance)),
            "snapshot": lambda store, chance: store.get_clone(_clone(chance)).snapshot(),
            "rollback": lambda store, chance: store.get_clone(_clone(chance)).rollback(),
            "commit": lambda store, chance: store.get_clone(_clone(chance)).commit(_image(chance)),
            "flatten": lambda store, chance: store.get_clone(_clone(chance)).flatten(),
            "changes": lambda store, chance: list(store.changes(_clone(chance))),
            "remove": lambda store, chance: store.get_clone(_clone(chance)).remove(),
            "tag": lambda store, chance: store.tag(_image(chance), _image(chance)),
            "remove image": lambda store, chance: store.remove_image(_image(chance)),
            "prune": lambda store, _: store.prune(store.plan_prune()),
            "cleanup": lambda store, _: store.snapshotter.cleanup(),
            "lists": lambda store, _: (store.images(), store.clones(), store.leases(), store.snapshotter.infos()),
            "check": lambda store, _: store.check(),
            "du": lambda store, _: store.du(),
            "lease": _lease,
        }

    def _import(self, store: layerfs.Store, chance: random.Random) -> None:
        store.import_image(chance.choice(self.layouts), names=[_image(chance)], unpack=chance.random() < 0.8)

    def _export(self, store: layerfs.Store, chance: random.Random) -> None:
        file = self.own / "exported.tar"
        file.unlink(missing_ok=True)
        store.export_image([_image(chance)], file)

    def _mount(self, store: layerfs.Store, chance: random.Random) -> None:
        clone, place = store.get_clone(_clone(chance)), self.own / "mounted"
        place.mkdir(exist_ok=True)
        clone.mount(place)
        clone.unmount()


def snapshot_acts() -> Mapping[str, Act]:
    """Return everything that a process does with snapshots."""
    return {
        "prepare": _prepare,
        "view": lambda store, chance: store.snapshotter.view(_key(chance), _name(chance)),
        "commit snapshot": lambda store, chance: store.snapshotter.commit(_name(chance), _key(chance)),
        "checkpoint": lambda store, chance: store.snapshotter.checkpoint(_name(chance), _key(chance)),
        "reset": lambda store, chance: store.snapshotter.reset(_key(chance), _name(chance)),
        "remove key": lambda store, chance: store.snapshotter.remove(_key(chance)),
        "remove name": lambda store, chance: store.snapshotter.remove(_name(chance)),
        "usage": lambda store, chance: store.snapshotter.usage(_key(chance)),
        "cleanup": lambda store, _: store.snapshotter.cleanup(),
    }


def _prepare(store: layerfs.Store, chance: random.Random) -> None:
    key = _key(chance)
    store.snapshotter.prepare(key, chance.choice(["", _name(chance)]), labels={"by": str(os.getpid())})
    if isinstance(store.driver, DirectAccess):  # else it takes a mount, beside which nothing is removed
        root = store.driver.layer_root(store.snapshotter.snapshot(key)).path
        try:
            (root / f"file{os.getpid()}").write_text(key)
        except OSError as error:
            if error.errno not in {errno.ENOENT, errno.EROFS}:
                raise
            raise layerfs.NotFound(f"removed or committed meanwhile: {error}") from error


def _write(store: layerfs.Store, chance: random.Random) -> None:
    with store.get_clone(_clone(chance)).mounted() as root:
        (root / f"file{chance.randrange(4)}").write_bytes(chance.randbytes(chance.randrange(1, 5000)))
        (root / "etc/issue").write_text(str(chance.random()))


def _lease(store: layerfs.Store, chance: random.Random) -> None:
    image = store.image(_image(chance))
    with store.lease(timedelta(minutes=1)) as lease:
        lease.add(images=[image.digest], snapshots=[image.top])
        held = store.image(image.digest)  # it was there after it was named
        for blob in held.manifest.blobs:
            store.blobs.check(blob.digest)


def _image(chance: random.Random) -> str:
    return f"test:{chance.randrange(5)}"


def _clone(chance: random.Random) -> str:
    return f"clone-{chance.randrange(6)}"


def _key(chance: random.Random) -> str:
    return f"key{chance.randrange(6)}"


def _name(chance: random.Random) -> str:
    return f"name{chance.randrange(12)}"

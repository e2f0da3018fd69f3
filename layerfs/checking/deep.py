"""What is wrong with the contents of a store: of blobs against their digests, of snapshots against what they were.

A layer is compared with its blob: the blob is unpacked once more, with files of holes so that it takes no space, and
the two trees are looked at file by file. So the rules of layers are applied by the one who knows them, and the blob is
verified on the way. Any other snapshot is compared with its seal, and sealed if it has none. What was found whole is
remembered at once, so a check that was interrupted can go on where it was.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from threading import Event

from layerfs.checking.fast import FETCH, problem
from layerfs.checking.problem import Problem, ProblemKind
from layerfs.checking.rows import layers_of
from layerfs.checking.users import Users
from layerfs.contract import KeepsIndex, Kind, LayerRoot, SnapshotId, Whiteouts
from layerfs.errors import Corrupt, LayerfsError, NoSpace, NotFound
from layerfs.events import Listener, Progress, ignore
from layerfs.image.descriptor import Descriptor
from layerfs.kernel import mounting
from layerfs.layer.digest import Digest
from layerfs.layer.limits import UNLIMITED
from layerfs.metadata import images, seals, snapshots
from layerfs.metadata.seals import UNSEALED, Seal
from layerfs.parts import Parts
from layerfs.sealing import inventory
from layerfs.sealing.book import Book
from layerfs.sealing.contents import HollowFiles
from layerfs.unpacking import LAYER_LABEL, Layer, Unpacker

_ACTION = "check"
_SHOWN = 20
"""Files of one snapshot that are named one by one."""


@dataclass(frozen=True, slots=True)
class KnownLayer:
    """A layer that is unpacked and of which the blob is known, with all layers of its image, the lowest first."""

    layer: Layer
    chains: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Finding:
    """What came of looking at one snapshot or blob: files that are not as they were, and other problems."""

    name: str
    files: Mapping[str, str] = field(default_factory=dict[str, str])
    problems: tuple[Problem, ...] = ()
    seal: Seal | None = None
    """What to write down where nothing is wrong."""
    on_top: bool = False
    """Whether it was compared with what was made on top of the snapshot below it."""


class DeepCheck:
    """Read all of a store, but the snapshots that were found whole after ``since`` (nanoseconds since 1970)."""

    def __init__(
        self,
        parts: Parts,
        clock: Callable[[], int],
        *,
        since: int | None = None,
        jobs: int | None = None,
        listener: Listener = ignore,
    ) -> None:
        self._parts = parts
        self._clock = clock
        self._since = since
        self._jobs = jobs or len(os.sched_getaffinity(0))
        self._listener = listener
        self._users = Users(parts.database)
        self._book = Book(parts)
        self._stopping = Event()

    def run(self) -> tuple[Problem, ...]:
        """Return what is wrong, snapshots below before those above."""
        with self._parts.database.read() as connection:
            rows = snapshots.by_kind(connection, Kind.COMMITTED)
            sealed = seals.every(connection)
            sizes = images.blob_sizes(connection)
            below = {row.name: snapshots.ancestor_names(connection, row.name) for row in rows}
            every = snapshots.ids(connection)
            layers = {info.name for info in snapshots.infos(connection, "sha256:") if LAYER_LABEL in info.labels}
        self._book.forget(every)
        held = self._parts.snapshotter.holdings.ids()
        with suppress(NoSpace), self._parts.database.write(durable=False) as connection:
            # A database that lost its last transactions would give the numbers of bytes away that are there.
            snapshots.pass_over(connection, max(held, default=SnapshotId(0)))
        known = known_layers(self._parts)
        work: list[Callable[[], _Finding]] = []
        for row in rows:
            seal = sealed.get(row.name)
            layer = known.get(row.name)
            if layer is not None and (row.name not in layers if seal is None else seal.digest != layer.layer.diff_id):
                known.pop(row.name)  # others made it, or it was carried here: what its blob does not say is its own
                layers.discard(row.name)
            if row.name in known:
                sizes.pop(str(known[row.name].layer.blob.digest), None)
            if row.id not in held or self._is_fresh(seal) or (row.name in layers and row.name not in known):
                continue  # without a blob, nothing tells what such a layer was
            work.append(self._work(row.id, row.name, known.get(row.name), seal))
        work += [self._blob_work(Descriptor("", Digest(digest), size)) for digest, size in sizes.items()]
        found = {finding.name: finding for finding in self._do(work)}
        order = {row.name: place for place, row in enumerate(rows)}
        return tuple(
            each
            for name in sorted(found, key=lambda name: order.get(name, -1))
            for each in self._problems(found[name], [found[one] for one in below.get(name, ()) if one in found])
        )

    def _is_fresh(self, seal: Seal | None) -> bool:
        return seal is not None and seal.checked is not None and self._since is not None and seal.checked > self._since

    # -- the work, in threads ------------------------------------------------------------------------------------------

    def _do(self, work: Sequence[Callable[[], _Finding]]) -> Iterator[_Finding]:
        with ThreadPoolExecutor(self._jobs, thread_name_prefix="layerfs-check") as pool:
            futures: list[Future[_Finding]] = [pool.submit(one) for one in work]
            try:
                for future in as_completed(futures):
                    finding = future.result()
                    if finding.seal is not None and not finding.files and not finding.problems:
                        self._remember(finding.name, finding.seal)
                    yield finding
            except BaseException:
                self._stopping.set()
                pool.shutdown(cancel_futures=True)
                raise

    def _remember(self, name: str, seal: Seal) -> None:
        """Write down that a snapshot is whole; a full disk must not end the check."""
        with suppress(LayerfsError), self._parts.database.write(durable=False) as connection:
            seals.put(connection, name, replace(seal, checked=self._clock()))

    def _hear(self, event: Progress) -> None:
        if self._stopping.is_set():
            raise _StoppedError
        self._listener(replace(event, action=_ACTION))

    def _work(
        self, snapshot_id: SnapshotId, name: str, known: KnownLayer | None, seal: Seal | None
    ) -> Callable[[], _Finding]:
        def look() -> _Finding:
            try:
                with self._parts.working():
                    compared = self._layer(known) if known else self._sealed(snapshot_id, name, seal)
                    return replace(compared, problems=(*compared.problems, *self._index(name)))
            except LayerfsError as error:
                if self._parts.snapshotter.missing([name]):
                    return _Finding(name)  # removed meanwhile
                return _Finding(name, problems=(self._unchecked(name, error),))

        return look

    def _blob_work(self, blob: Descriptor) -> Callable[[], _Finding]:
        def look() -> _Finding:
            try:
                self._parts.blobs.check(blob.digest, self._hear)
            except NotFound:
                return _Finding(str(blob.digest))  # which the fast check says
            except Corrupt as error:
                return _Finding(str(blob.digest), problems=(self._blob(blob.digest, error),))
            except LayerfsError as error:
                return _Finding(str(blob.digest), problems=(self._unchecked(str(blob.digest), error),))
            return _Finding(str(blob.digest))

        return look

    # -- one snapshot --------------------------------------------------------------------------------------------------

    def _layer(self, known: KnownLayer) -> _Finding:
        """Compare a layer with its blob."""
        layer = known.layer
        hollow = HollowFiles()
        try:
            with unpacked_again(self._parts, known, hollow, self._hear) as (root, seal, lists_root):
                expected = inventory.take(root.path, content=hollow.content)
        except Corrupt as error:
            return _Finding(layer.chain, problems=(self._blamed(layer, error),))
        except NotFound:
            if self._parts.blobs.has(layer.blob):
                raise
            return _Finding(layer.chain)  # without its blob, as the fast check says, nothing tells what it was
        with self._book.shown(layer.chain) as own:
            found = inventory.take(own, step=self._step(layer.chain))
        wrong = inventory.differences(expected, found, root_time=lists_root)
        return _Finding(layer.chain, wrong, seal=seal, on_top=True)

    def _blamed(self, layer: Layer, error: Corrupt) -> Problem:
        """Tell whether a layer cannot be unpacked because of its blob, or because of what is missing below it."""
        try:
            self._parts.blobs.check(layer.blob.digest, self._hear)
        except Corrupt:
            return self._blob(layer.blob.digest, error)
        return self._unchecked(layer.chain, error)

    def _sealed(self, snapshot_id: SnapshotId, name: str, seal: Seal | None) -> _Finding:
        """Compare a snapshot with its seal, or seal it."""
        with self._book.shown(name) as own:
            found = inventory.take(own, step=self._step(name))
        if seal is None or seal == UNSEALED:
            self._book.put(name, found, self._clock())
            return _Finding(name)
        if inventory.digest(found) == seal.digest:
            return _Finding(name, seal=seal)
        expected = self._book.inventory(snapshot_id, seal.digest)
        if expected is None:
            return _Finding(name, {"": "some of it is not as it was, and the list that would tell what is gone, too"})
        return _Finding(name, inventory.differences(expected, found), seal=seal)

    def _index(self, name: str) -> Iterator[Problem]:
        driver = self._parts.driver
        if isinstance(driver, KeepsIndex):
            damage = driver.check_index(self._parts.snapshotter.snapshot(name))
            if damage is not None:
                yield problem(self._users, name, damage, ProblemKind.INDEX)

    def _step(self, name: str) -> Callable[[int], None]:
        return lambda done: self._hear(Progress(_ACTION, name, done))

    # -- what to say ---------------------------------------------------------------------------------------------------

    def _problems(self, finding: _Finding, below: Sequence[_Finding]) -> Iterator[Problem]:
        """Yield the problems of a snapshot; a layer was compared on top of those below, which may lend it theirs."""
        yield from finding.problems
        lent = {path for one in below for path in one.files} if finding.on_top else set[str]()
        files = {path: words for path, words in finding.files.items() if path not in lent}
        hurts = self._users.of_snapshot(finding.name)
        hint = "`layerfs repair --force` mends it"
        for path, words in list(files.items())[:_SHOWN]:
            yield Problem(finding.name, words, hint, hurts, ProblemKind.CONTENT, f"/{path}")
        if len(files) > _SHOWN:
            more = f"{len(files) - _SHOWN} more files are not as they were"
            yield Problem(finding.name, more, hint, hurts, ProblemKind.CONTENT)

    def _blob(self, digest: Digest, error: LayerfsError) -> Problem:
        return Problem(str(digest), error.message, FETCH, self._users.of_blob(digest), ProblemKind.BLOB)

    def _unchecked(self, name: str, error: LayerfsError) -> Problem:
        message = f"it could not be checked: {error.message}"
        return Problem(name, message, error.hint or "", self._users.of_snapshot(name), ProblemKind.UNCHECKED)


class _StoppedError(Exception):
    """End a thread of a check that ends."""


def known_layers(parts: Parts) -> dict[str, KnownLayer]:
    """Return the layers of which the blob is known, by their names: of all images, and those that wait for a prune.

    The documents of an image count, and the database where these cannot be read.
    """
    found: dict[str, KnownLayer] = {}
    with parts.database.read() as connection:
        listed = [(row, images.layers(connection, row.digest)) for row in images.every(connection)]
        sealed = seals.every(connection)
        others = [
            (info, snapshots.ancestor_names(connection, info.name))
            for info in snapshots.infos(connection, "sha256:")
            if LAYER_LABEL in info.labels
        ]
    for row, recorded in listed:
        layers = layers_of(parts.blobs, Digest(row.digest), row.media_type) or recorded
        chains = tuple(layer.chain_id for layer in layers)
        for layer, parent in zip(layers, ("", *chains), strict=False):
            blob = Descriptor("", Digest(layer.blob), layer.size)
            found[layer.chain_id] = KnownLayer(Layer(blob, Digest(layer.diff_id), layer.chain_id, parent), chains)
    for info, below in others:
        digest = Digest(info.labels[LAYER_LABEL])
        if info.name not in found and info.name in sealed and parts.blobs.has(digest):
            unpacked = Layer(parts.blobs.descriptor(digest), Digest(sealed[info.name].digest), info.name, info.parent)
            found[info.name] = KnownLayer(unpacked, (*reversed(below), info.name))
    return found


@contextmanager
def unpacked_again(
    parts: Parts, known: KnownLayer, hollow: HollowFiles, listener: Listener
) -> Iterator[tuple[LayerRoot, Seal, bool]]:
    """Unpack a layer once more, with hollow files, for as long as the block runs.

    Give its root, the seal that it deserves, and whether the layer says what the root directory is.
    """
    snapshotter = parts.snapshotter
    key = parts.temporary_key()
    mounts = snapshotter.prepare(key, known.layer.parent)
    try:
        with ExitStack() as stack:
            root = parts.layer_root(key)
            if root is None:
                root = LayerRoot(stack.enter_context(mounting.mounted(mounts)), Whiteouts.REMOVE)
            unpacker = Unpacker(parts, limits=UNLIMITED, listener=listener)
            applied = unpacker.again(known.layer, root, known.chains, filler=hollow.fill)
            yield root, Seal(applied.entries, applied.size, applied.diff_id), applied.lists_root
    finally:
        snapshotter.remove(key)

"""The blobs of a store: files named by the digest of what is in them, verified as they come in, durable once named.

``<root>/sha256/<64 digits>`` are whole blobs, ``<root>/ingest/`` those that are being written. A blob is written under
a random name, synced, and renamed, so a name never stands for other bytes, whatever crashes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self, cast

from layerfs.errors import Corrupt, InvalidArgument, LayerfsError, NotFound, os_error
from layerfs.events import Listener, Progress, ignore
from layerfs.image.descriptor import Descriptor
from layerfs.image.documents import MAX_DOCUMENT
from layerfs.layer.digest import Digest
from layerfs.tree import fsync_dir, syncfs

CHUNK: Final = 1 << 20
"""Bytes read, hashed and written at once."""

_TOGETHER: Final = 64
"""Blobs that are written before a sync makes them durable, each with a descriptor."""

_CREATE: Final = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_BLOB_MODE: Final = 0o444


class BlobStore:
    """The blobs below one directory; several processes may use it at once."""

    def __init__(self, root: Path) -> None:
        """Open the store, and make its directories where they are not there."""
        self.root = root
        self._blobs = root / "sha256"
        self._ingest = root / "ingest"
        try:
            if not self._ingest.is_dir():
                self._blobs.mkdir(parents=True, exist_ok=True)
                self._ingest.mkdir(exist_ok=True)
                fsync_dir(root)
        except OSError as error:
            raise os_error(f"make a store of blobs at {root}", error) from error

    def path(self, digest: Digest) -> Path:
        """Return where the blob is, or would be."""
        return self._blobs / digest.hex

    def has(self, blob: Digest | Descriptor) -> bool:
        """Tell whether the blob is there, and has the size that a descriptor says."""
        digest, size = (blob.digest, blob.size) if isinstance(blob, Descriptor) else (blob, None)
        try:
            status = os.stat(self.path(digest))
        except FileNotFoundError:
            return False
        return stat.S_ISREG(status.st_mode) and size in (None, status.st_size)

    def size(self, digest: Digest) -> int:
        """Return the size of a blob in bytes; raise `NotFound` where it is not there."""
        try:
            return self.path(digest).stat().st_size
        except OSError as error:
            raise _missing(digest, error) from error

    def open(self, digest: Digest) -> BinaryIO:
        """Open a blob for reading; raise `NotFound` where it is not there. Its bytes were verified when they came."""
        try:
            return cast("BinaryIO", self.path(digest).open("rb", buffering=0))  # read in pieces of a MiB anyway
        except OSError as error:
            raise _missing(digest, error) from error

    def read(self, blob: Digest | Descriptor) -> bytes:
        """Return a small blob whole (a manifest, a configuration), verified again.

        Raise `NotFound`, and `Corrupt` where the disk has other bytes or it has more than 4 MiB.
        """
        descriptor = blob if isinstance(blob, Descriptor) else self.descriptor(blob)
        with self.open(descriptor.digest) as stream:
            return read_document(stream, descriptor, f"blob {descriptor.digest}")

    def descriptor(self, digest: Digest, media_type: str = "") -> Descriptor:
        """Return the descriptor of a blob that is there; raise `NotFound` where it is not."""
        return Descriptor(media_type, digest, self.size(digest))

    def put(
        self,
        stream: BinaryIO,
        descriptor: Descriptor,
        listener: Listener = ignore,
        *,
        action: str = "import",
    ) -> None:
        """Keep what the stream holds to its end, if it is what the descriptor says; else raise `Corrupt`, keep nothing.

        A blob that is there already with this size is not read again.
        """
        if self.has(descriptor):
            listener(Progress(action, str(descriptor.digest), descriptor.size, descriptor.size))
            return
        with self.writer() as writer:
            writer.take(stream, descriptor, listener, action=action)
            writer.commit()

    def put_all(
        self, blobs: Iterable[Descriptor], opened: Callable[[Digest], BinaryIO], listener: Listener = ignore
    ) -> None:
        """Keep several blobs as `put` does, with one sync for many; ``opened`` gives the stream of each."""
        missing = [blob for blob in dict.fromkeys(blobs) if not self.has(blob)]
        for start in range(0, len(missing), _TOGETHER):
            with contextlib.ExitStack() as stack:
                writers = [stack.enter_context(self.writer()) for _ in missing[start : start + _TOGETHER]]
                for writer, blob in zip(writers, missing[start:], strict=False):
                    with opened(blob.digest) as stream:
                        writer.take(stream, blob, listener)
                self._commit_all(writers)

    def _commit_all(self, writers: Sequence[BlobWriter]) -> None:
        syncfs(self._ingest)
        for writer in writers:
            writer.name()
        fsync_dir(self._blobs)

    def put_bytes(self, data: bytes, media_type: str = "") -> Descriptor:
        """Keep these bytes, and return their descriptor."""
        with self.writer() as writer:
            writer.write(data)
            return Descriptor(media_type, writer.commit(), len(data))

    def writer(self) -> BlobWriter:
        """Begin a blob whose digest is known at its end: a context manager that keeps nothing unless committed."""
        return BlobWriter(self._ingest, self._blobs)

    def remove(self, digest: Digest) -> None:
        """Delete a blob; one that is gone already is no error."""
        try:
            self.path(digest).unlink(missing_ok=True)
        except OSError as error:
            raise os_error(f"remove the blob {digest}", error) from error

    def digests(self) -> Iterator[Digest]:
        """Yield the digest of every blob, in no order."""
        try:
            names = os.listdir(self._blobs)
        except OSError as error:
            raise os_error(f"list the blobs in {self._blobs}", error) from error
        for name in names:
            with contextlib.suppress(InvalidArgument):
                yield Digest.parse(f"sha256:{name}")

    def check(self, digest: Digest, listener: Listener = ignore) -> None:
        """Read a blob through; raise `NotFound`, or `Corrupt` where the disk has other bytes than its name says."""
        with self.open(digest) as stream:
            for _ in verified(stream, self.descriptor(digest), f"blob {digest}", listener):
                pass

    def cleanup(self) -> int:
        """Delete what crashed writers left, and return how many files that were. Those at work are not disturbed."""
        return sum(_abandoned(path, remove=True) for path in sorted(self._ingest.iterdir()))

    def abandoned(self) -> list[Path]:
        """Return what crashed writers left, which `cleanup` deletes."""
        return [path for path in sorted(self._ingest.iterdir()) if _abandoned(path, remove=False)]

    def strangers(self) -> list[Path]:
        """Return what lies among the blobs, or beside them, and has not the name of one."""
        held = {digest.hex for digest in self.digests()}
        try:
            beside = [self.root / name for name in sorted(os.listdir(self.root)) if name not in {"sha256", "ingest"}]
            among = [self._blobs / name for name in sorted(os.listdir(self._blobs)) if name not in held]
        except OSError as error:
            raise os_error(f"list the blobs in {self._blobs}", error) from error
        return beside + among


class BlobWriter:
    """A blob in the making: write to it, then commit; leaving the context without a commit keeps nothing."""

    def __init__(self, ingest: Path, blobs: Path) -> None:
        self._blobs = blobs
        self._hash = hashlib.sha256()
        self.size = 0
        """Bytes written."""
        try:
            self._path, self._file = _create_locked(ingest)
        except OSError as error:
            raise os_error(f"create a blob in {ingest}", error) from error

    @property
    def digest(self) -> Digest:
        """Return the digest of what was written until now."""
        return Digest(f"sha256:{self._hash.hexdigest()}")

    def writable(self) -> bool:
        """Return True, as a stream's does."""
        return True

    def write(self, data: bytes | bytearray | memoryview) -> int:
        """Append to the blob, and return the number of bytes."""
        view = memoryview(data).cast("B")
        self._hash.update(view)
        written = 0
        try:
            while written < len(view):
                written += os.write(self._file, view[written:])
        except OSError as error:
            raise os_error("write a blob", error) from error
        self.size += written
        return written

    def flush(self) -> None:
        """Do nothing: nothing is buffered here."""

    def take(
        self, stream: BinaryIO, descriptor: Descriptor, listener: Listener = ignore, *, action: str = "import"
    ) -> None:
        """Write what the stream holds to its end; raise `Corrupt` if it is not what the descriptor says."""
        what = f"blob {descriptor.digest}"
        for chunk in _sized(stream, descriptor, what, listener, action):
            self.write(chunk)
        if self.digest != descriptor.digest:
            raise _other_bytes(what, self.digest)

    def commit(self, expected: Digest | None = None) -> Digest:
        """Make the blob durable and give it its name; return the digest.

        Raise `Corrupt` where it is not ``expected``; then nothing is kept.
        """
        digest = self.digest
        if expected is not None and digest != expected:
            self.abort()
            raise Corrupt(f"the bytes written have the digest {digest}, not {expected}")
        try:
            os.fsync(self._file)
        except OSError as error:
            self.abort()
            raise os_error(f"keep the blob {digest}", error) from error
        self.name()
        fsync_dir(self._blobs)
        return digest

    def name(self) -> None:
        """Give the blob, which was synced, its name; the directory is the caller's to sync."""
        digest = self.digest
        try:
            self._path.rename(self._blobs / digest.hex)
        except OSError as error:
            self.abort()
            raise os_error(f"keep the blob {digest}", error) from error
        self._close()

    def abort(self) -> None:
        """Throw away what was written; doing it twice, or after a commit, is no error."""
        if self._file >= 0:
            self._path.unlink(missing_ok=True)
            self._close()

    def _close(self) -> None:
        os.close(self._file)
        self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()


def verified(
    stream: BinaryIO, descriptor: Descriptor, what: str, listener: Listener = ignore, *, action: str = "verify"
) -> Iterator[bytes]:
    """Yield what the stream holds to its end, and raise `Corrupt` where it is not what the descriptor says.

    The size is checked before a byte too many is yielded, the digest after the last: use nothing before the end.
    ``what`` names the blob in the errors.
    """
    hashed = hashlib.sha256()
    for chunk in _sized(stream, descriptor, what, listener, action):
        hashed.update(chunk)
        yield chunk
    if (digest := Digest(f"sha256:{hashed.hexdigest()}")) != descriptor.digest:
        raise _other_bytes(what, digest)


def read_document(stream: BinaryIO, descriptor: Descriptor, what: str) -> bytes:
    """Return what the stream holds, whole and verified; raise `Corrupt` also where it is more than 4 MiB."""
    if descriptor.size > MAX_DOCUMENT:
        raise Corrupt(f"{what} has {descriptor.size} bytes: more than the {MAX_DOCUMENT} that a document may have")
    return b"".join(verified(stream, descriptor, what))


def _sized(stream: BinaryIO, descriptor: Descriptor, what: str, listener: Listener, action: str) -> Iterator[bytes]:
    """Yield what the stream holds to its end, and raise `Corrupt` where its size is not the descriptor's."""
    done = 0
    while chunk := _read(stream, what):
        done += len(chunk)
        if done > descriptor.size:
            raise Corrupt(f"{what} has more than the {descriptor.size} bytes that its descriptor says")
        yield chunk
        listener(Progress(action, str(descriptor.digest), done, descriptor.size))
    if done != descriptor.size:
        raise Corrupt(f"{what} is cut off: {done} bytes instead of {descriptor.size}")
    if not done:
        listener(Progress(action, str(descriptor.digest), 0, 0))


def _other_bytes(what: str, digest: Digest) -> Corrupt:
    return Corrupt(f"{what} has other bytes than its descriptor says: their digest is {digest}")


def _read(stream: BinaryIO, what: str) -> bytes:
    try:
        return stream.read(CHUNK)
    except OSError as error:
        raise os_error(f"read {what}", error) from error


def _create_locked(directory: Path) -> tuple[Path, int]:
    """Create a file that is locked for as long as its writer lives, so that `BlobStore.cleanup` can tell."""
    while True:
        path = directory / os.urandom(16).hex()
        descriptor = os.open(path, _CREATE, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.fchmod(descriptor, _BLOB_MODE)
            if os.fstat(descriptor).st_nlink:  # else a cleanup came in between create and lock
                return path, descriptor
        except OSError:
            path.unlink(missing_ok=True)
            os.close(descriptor)
            raise
        os.close(descriptor)


def _abandoned(path: Path, *, remove: bool) -> bool:
    """Tell whether a file in the making is nobody's, as its lock is free, and delete it then if asked to."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    except OSError as error:
        raise os_error(f"clean up {path}", error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return False
        if remove:
            path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    except OSError as error:
        raise os_error(f"clean up {path}", error) from error
    finally:
        os.close(descriptor)
    return True


def _missing(digest: Digest, error: OSError) -> LayerfsError:
    if isinstance(error, FileNotFoundError):
        return NotFound(f"the blob {digest} is not in the store")
    return os_error(f"read the blob {digest}", error)

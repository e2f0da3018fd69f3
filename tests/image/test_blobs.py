"""The store of blobs: verified, durable, atomic, and clean after a crash."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from layerfs.errors import Corrupt, LayerfsError, NoSpace, NotFound, PermissionDenied
from layerfs.events import Progress
from layerfs.image.blobs import CHUNK, BlobStore
from layerfs.image.descriptor import Descriptor
from layerfs.layer.digest import Digest

DATA = bytes(range(256)) * (CHUNK // 100)
BLOB = Descriptor.of("a/b", DATA)


@pytest.fixture
def blobs(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def _files(store: BlobStore) -> list[str]:
    return sorted(str(path.relative_to(store.root)) for path in store.root.rglob("*") if path.is_file())


def test_a_blob_goes_in_and_comes_out(blobs: BlobStore) -> None:
    events: list[Progress] = []
    blobs.put(io.BytesIO(DATA), BLOB, events.append)
    assert blobs.has(BLOB.digest)
    assert blobs.has(BLOB)
    assert not blobs.has(Descriptor("", BLOB.digest, BLOB.size + 1))
    assert blobs.size(BLOB.digest) == len(DATA)
    with blobs.open(BLOB.digest) as stream:
        assert stream.read() == DATA
    assert list(blobs.digests()) == [BLOB.digest]
    assert _files(blobs) == [f"sha256/{BLOB.digest.hex}"]
    assert blobs.path(BLOB.digest).stat().st_mode & 0o777 == 0o444
    assert [event.done for event in events] == [CHUNK, 2 * CHUNK, len(DATA)]
    assert {(event.action, event.item, event.total) for event in events} == {("import", BLOB.digest, len(DATA))}
    assert blobs.descriptor(BLOB.digest, "a/b") == BLOB
    blobs.check(BLOB.digest)


def test_a_blob_that_is_there_is_not_read_again(blobs: BlobStore) -> None:
    blobs.put(io.BytesIO(DATA), BLOB)
    stream = io.BytesIO(b"never looked at")
    events: list[Progress] = []
    blobs.put(stream, BLOB, events.append)
    assert stream.tell() == 0
    assert [(event.done, event.total) for event in events] == [(len(DATA), len(DATA))]


def test_an_empty_blob(blobs: BlobStore) -> None:
    empty = blobs.put_bytes(b"")
    blobs.put(io.BytesIO(), empty)
    assert blobs.read(empty) == b""


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (DATA[:-1], f"is cut off: {len(DATA) - 1} bytes instead of {len(DATA)}"),
        (b"", "is cut off"),
        (DATA + b"x", f"more than the {len(DATA)} bytes"),
        (DATA[:-1] + b"x", "has other bytes than its descriptor says"),
    ],
)
def test_other_bytes_are_refused_and_not_kept(blobs: BlobStore, data: bytes, words: str) -> None:
    with pytest.raises(Corrupt, match=words):
        blobs.put(io.BytesIO(data), BLOB)
    assert _files(blobs) == []


def test_many_blobs_go_in_together_and_each_is_verified(blobs: BlobStore) -> None:
    contents = {Descriptor.of("", data): data for data in (b"%d" % number * 99 for number in range(150))}
    by_digest = {descriptor.digest: data for descriptor, data in contents.items()}
    opened: list[Digest] = []

    def opener(digest: Digest) -> io.BytesIO:
        opened.append(digest)
        return io.BytesIO(by_digest[digest])

    first, *others = contents
    blobs.put_all([first, first], opener)
    blobs.put_all([*contents, first], opener)
    assert opened == [first.digest, *(other.digest for other in others)]
    for descriptor, data in contents.items():
        assert blobs.read(descriptor) == data
        assert blobs.path(descriptor.digest).stat().st_mode & 0o777 == 0o444


def test_one_wrong_blob_of_many_is_not_kept(blobs: BlobStore) -> None:
    with pytest.raises(Corrupt, match="is cut off"):
        blobs.put_all(
            [BLOB, Descriptor.of("", b"x")], lambda digest: io.BytesIO(DATA if digest == BLOB.digest else b"")
        )
    assert _files(blobs) == []


def test_an_endless_stream_is_left(blobs: BlobStore) -> None:
    with Path("/dev/zero").open("rb") as zeros, pytest.raises(Corrupt, match="more than the"):
        blobs.put(zeros, BLOB)
    assert _files(blobs) == []


def test_a_damaged_blob_is_noticed_and_mended(blobs: BlobStore) -> None:
    blobs.put(io.BytesIO(DATA), BLOB)
    path = blobs.path(BLOB.digest)
    path.chmod(0o600)
    path.write_bytes(DATA[:-1])
    for look in (blobs.check, blobs.read):
        with pytest.raises(Corrupt):
            look(BLOB.digest)
    blobs.put(io.BytesIO(DATA), BLOB)
    blobs.check(BLOB.digest)


def test_documents_are_small_and_verified(blobs: BlobStore) -> None:
    assert blobs.read(blobs.put_bytes(b"{}").digest) == b"{}"
    large = blobs.put_bytes(bytes(5 << 20))
    with pytest.raises(Corrupt, match="more than the"):
        blobs.read(large)
    with pytest.raises(NotFound):
        blobs.read(Digest.of(b"not there"))


def test_a_missing_blob_is_not_found(blobs: BlobStore) -> None:
    assert not blobs.has(BLOB.digest)
    with pytest.raises(NotFound, match=str(BLOB.digest)):
        blobs.open(BLOB.digest)
    with pytest.raises(NotFound):
        blobs.size(BLOB.digest)
    blobs.remove(BLOB.digest)


def test_what_is_no_file_is_no_blob(blobs: BlobStore) -> None:
    blobs.path(BLOB.digest).mkdir()
    assert not blobs.has(BLOB.digest)
    for act in (blobs.open, blobs.read, blobs.remove):
        with pytest.raises(LayerfsError, match=str(BLOB.digest)):
            act(BLOB.digest)
    with pytest.raises(LayerfsError, match="cannot keep the blob"):
        blobs.put(io.BytesIO(DATA), BLOB)
    assert _files(blobs) == []


def test_a_store_that_is_gone(blobs: BlobStore) -> None:
    blobs.path(BLOB.digest).parent.rmdir()
    (blobs.root / "ingest").rmdir()
    for act in (blobs.writer, lambda: list(blobs.digests()), lambda: blobs.put_bytes(b"")):
        with pytest.raises(NotFound):
            act()


def test_a_stream_that_cannot_be_read(blobs: BlobStore) -> None:
    class Broken(io.BytesIO):
        def read(self, _: int | None = -1, /) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.raises(LayerfsError, match=r"cannot read blob sha256:.*Input/output error"):
        blobs.put(Broken(), BLOB)
    assert _files(blobs) == []


def test_a_writer_knows_its_digest_at_the_end(blobs: BlobStore) -> None:
    with blobs.writer() as writer:
        assert writer.write(DATA[:10]) == 10
        writer.write(memoryview(bytearray(DATA))[10:])
        writer.flush()
        assert writer.commit(BLOB.digest) == BLOB.digest
        assert writer.size == len(DATA)
    writer.abort()
    assert blobs.read(BLOB.digest) == DATA
    blobs.remove(BLOB.digest)
    assert _files(blobs) == []


def test_a_writer_that_is_not_committed_keeps_nothing(blobs: BlobStore) -> None:
    with blobs.writer() as writer:
        writer.write(DATA)
    assert _files(blobs) == []
    with blobs.writer() as writer:
        writer.write(b"x")
        with pytest.raises(Corrupt, match="not sha256"):
            writer.commit(BLOB.digest)
        assert _files(blobs) == []
    writer = blobs.writer()
    writer.write(b"x")
    writer.abort()
    writer.abort()
    assert _files(blobs) == []


def test_no_descriptor_leaks(blobs: BlobStore) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for data in (DATA, DATA[:5]):
        with contextlib.suppress(Corrupt):
            blobs.put(io.BytesIO(data), BLOB)
        blobs.remove(BLOB.digest)
    assert len(os.listdir("/proc/self/fd")) == before


def test_other_files_are_no_blobs(blobs: BlobStore) -> None:
    (blobs.root / "sha256/README").write_text("x")
    assert list(blobs.digests()) == []


def test_cleanup_takes_what_a_killed_writer_left_and_nothing_else(blobs: BlobStore) -> None:
    script = (
        "import sys, time; from pathlib import Path; from layerfs.image.blobs import BlobStore\n"
        "writer = BlobStore(Path(sys.argv[1])).writer(); writer.write(b'half')\n"
        "print('ready', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(blobs.root)], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        assert blobs.cleanup() == 0
        assert len(_files(blobs)) == 1
        child.send_signal(signal.SIGKILL)
    with blobs.writer() as writer:
        writer.write(b"at work")
        assert blobs.cleanup() == 1
        writer.commit()
    assert _files(blobs) == [f"sha256/{Digest.of(b'at work').hex}"]
    assert blobs.cleanup() == 0


@pytest.mark.root
def test_a_full_disk_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], check=True)
    try:
        blobs = BlobStore(tmp_path / "blobs")
        with pytest.raises(NoSpace):
            blobs.put(io.BytesIO(DATA), BLOB)
        assert _files(blobs) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_place_that_cannot_be_written_says_so() -> None:
    with pytest.raises((PermissionDenied, NotFound)):
        BlobStore(Path("/proc/blobs"))

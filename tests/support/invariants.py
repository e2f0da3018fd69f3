"""What must hold of every store at every moment that nobody works with it."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from layerfs import Kind, Snapshotter, Store, Usage, locks
from layerfs.kernel import mounting


def check_snapshots(snapshotter: Snapshotter) -> None:
    """Check that every row has its bytes and that, after a cleanup, all bytes have their row."""
    snapshotter.cleanup()
    infos = snapshotter.infos()
    ids = {info.name: snapshotter.snapshot(info.name).id for info in infos}
    assert set(snapshotter.driver.ids()) == set(ids.values())
    kinds = {info.name: info.kind for info in infos}
    for info in infos:
        assert info.parent == "" or kinds[info.parent] is Kind.COMMITTED, info
        assert "\x00" not in info.name, "a successor was left under a name of its own"
        if info.kind is Kind.COMMITTED:
            assert snapshotter.usage(info.name) != Usage(-1, -1)


def check_store(store: Store) -> None:
    """Check the snapshots, that every blob of every image is whole, and that nothing else is left after a prune."""
    check_snapshots(store.snapshotter)
    names = {info.name for info in store.snapshotter.infos()}
    for clone in store.clones():
        assert clone.key in names, f"{clone.name} has no snapshot"
        store.image(clone.image)
    for image in store.images():
        for digest in (image.digest, *(blob.digest for blob in image.manifest.blobs)):
            store.blobs.check(digest)


def tree_digest(root: Path) -> str:
    """Return one digest of everything in a tree that a container can see, times of directories left out."""
    seen = hashlib.sha256()
    first_name: dict[int, str] = {}
    for directory, names, files in os.walk(root):
        names.sort()
        for name in sorted([*names, *files]):
            path = os.path.join(directory, name)
            shown = os.path.relpath(path, root)
            status = os.lstat(path)
            line = f"{shown} {stat.filemode(status.st_mode)} {status.st_uid}:{status.st_gid}"
            if stat.S_ISLNK(status.st_mode):
                line += f" -> {os.readlink(path)}"
            elif stat.S_ISREG(status.st_mode):
                line += f" {status.st_size} {status.st_mtime_ns} {hashlib.sha256(Path(path).read_bytes()).hexdigest()}"
                line += f" = {first_name.setdefault(status.st_ino, shown)}"
            for attribute in sorted(os.listxattr(path, follow_symlinks=False)):
                line += f" {attribute}={os.getxattr(path, attribute, follow_symlinks=False)!r}"
            seen.update(f"{line}\n".encode(errors="surrogateescape"))
    return seen.hexdigest()


def image_tree(store: Store, reference: str) -> str:
    """Return the digest of an image's tree, by a clone that is gone afterwards."""
    with store.clone(reference) as clone, clone.mounted() as root:
        return tree_digest(root)


def unmount_all(store: Store) -> None:
    """Unmount what killed processes left mounted, or left a server to mount."""
    for info in store.snapshotter.infos("kind!=committed"):
        place = locks.upper(store.snapshotter.snapshot(info.name).id)
        with locks.locked(store.path / "lock", place, exclusive=True, what=info.name, timeout=30):
            pass
    for clone in store.clones():
        if clone.mount_points():
            clone.unmount()
    for info in store.snapshotter.infos("kind!=committed"):
        for point in mounting.users(store.snapshotter.mounts(info.name)):
            mounting.unmount(point.path)

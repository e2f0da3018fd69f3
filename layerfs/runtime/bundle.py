"""Bundles: a directory with ``config.json`` and ``rootfs``, the form in which OCI runtimes take a container.

``rootfs`` is where the clone is mounted. Source: runtime-spec bundle.md.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from layerfs.clones import Clone
from layerfs.errors import AlreadyExists, os_error
from layerfs.kernel import temporary
from layerfs.kernel.descriptors import opened
from layerfs.runtime.container import Container
from layerfs.runtime.host import host_facts
from layerfs.runtime.spec import configuration
from layerfs.runtime.users import find_account
from layerfs.store import Store

_CONFIG = "config.json"
_ROOT = "rootfs"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle at ``path``; ``name`` is that of its container, "" where whoever calls the runtime names it."""

    path: Path
    name: str = ""

    @property
    def config(self) -> Path:
        """Return its configuration."""
        return self.path / _CONFIG

    @property
    def root(self) -> Path:
        """Return where its root is mounted."""
        return self.path / _ROOT


def write_bundle(store: Store, clone: Clone, directory: Path, wanted: Container) -> Bundle:
    """Write a bundle of a clone, and mount the clone in it; `Clone.unmount` takes the mount away again.

    ``directory`` is made if it is missing. On failure nothing of it remains. Raise `AlreadyExists` for a directory
    that holds something, `Busy` for a clone that is mounted elsewhere, `NotFound` for a user whom the clone does not
    have, `InvalidArgument` where there is no command.
    """
    bundle = Bundle(directory.absolute())
    made = _make_directory(bundle.path)
    try:
        bundle.root.mkdir(mode=0o755)
        clone.mount(bundle.root)
        try:
            _write(bundle, _configured(store, clone, bundle, wanted))
        except BaseException:
            clone.unmount()
            raise
    except BaseException:
        _remove(bundle, whole=made)
        raise
    return bundle


@contextmanager
def bundled(store: Store, clone: Clone, wanted: Container, name: str) -> Iterator[Bundle]:
    """Give a bundle of a clone in a private directory while the block runs; errors as for `write_bundle`."""
    bundle = Bundle(temporary.directory("layerfs-run-"), name)
    try:
        bundle.path.chmod(0o711)  # root of the container passes through, who may be another here
        bundle.root.mkdir(mode=0o755)
        with clone.mounted(bundle.root, suid=True):  # an image may rely on them: sudo, su, ping
            _write(bundle, _configured(store, clone, bundle, wanted))
            yield bundle
    finally:
        _remove(bundle, whole=True)


def _configured(store: Store, clone: Clone, bundle: Bundle, wanted: Container) -> dict[str, Any]:
    image = store.image(clone.image).config.config
    with opened(os.open(bundle.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)) as root:
        account = find_account(root, image.user if wanted.user is None else wanted.user)
    return configuration(wanted, image, account, host_facts(store.id_map, wanted.limits, bundle.name))


def _make_directory(path: Path) -> bool:
    """Make an empty directory; tell whether it was missing."""
    try:
        path.mkdir(mode=0o711)
    except FileExistsError:
        if not path.is_dir() or any(path.iterdir()):
            raise AlreadyExists(
                f"{path} is there already and not empty", hint="name an empty directory, or one to be made"
            ) from None
        return False
    except OSError as error:
        raise os_error(f"make the bundle {path}", error) from error
    return True


def _write(bundle: Bundle, document: dict[str, Any]) -> None:
    try:
        bundle.config.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise os_error(f"write {bundle.config}", error) from error


def _remove(bundle: Bundle, *, whole: bool) -> None:
    """Remove what was made of a bundle; never what is below a mount that did not go."""
    bundle.config.unlink(missing_ok=True)
    with suppress(OSError):
        bundle.root.rmdir()
        if whole:
            bundle.path.rmdir()

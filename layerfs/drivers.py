"""Find the installed drivers and open one; every driver, ours too, is an entry point of ``layerfs.drivers``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from layerfs import entrypoints, tree
from layerfs.contract import Driver, DriverFactory, Traits
from layerfs.entrypoints import EntryPoint
from layerfs.errors import InvalidArgument, LayerfsError, Unsupported, os_error

_GROUP = "layerfs.drivers"
_PREFERENCE = ("overlay2", "btrfs", "zfs", "fuse", "copy")
"""What "auto" tries, in this order, before the drivers of others: cheap clones first, copies last."""


@dataclass(frozen=True, slots=True)
class Probe:
    """What came of trying a driver: its traits, or the error that says why it does not work here and what to do."""

    name: str
    traits: Traits | None
    error: LayerfsError | None


def names() -> tuple[str, ...]:
    """Return the names of the installed drivers, in the order in which "auto" tries them."""
    return tuple(_installed())


def open_driver(name: str, root: Path, options: Mapping[str, str] | None = None) -> Driver:
    """Open a driver on its directory, which is made if it is missing.

    Raise `InvalidArgument` for a name that is not installed and `Unsupported` for one that cannot work here.
    """
    installed = _installed()
    if name not in installed:
        raise InvalidArgument(f"there is no driver {name!r}", hint=f"installed are: {', '.join(installed)}")
    return _open(installed[name], root, options)


def open_first(root: Path, options: Mapping[str, str] | None = None) -> tuple[str, Driver]:
    """Open the first driver that works here on ``<root>/<name>``, and return its name too.

    Nothing is left of those that do not; raise `Unsupported` if none does.
    """
    reasons: list[str] = []
    for name, found in _installed().items():
        try:
            return name, _open(found, root / name, options)
        except BaseException as error:
            with suppress(LayerfsError):
                tree.remove_tree(root / name)
            if not isinstance(error, LayerfsError):
                raise
            reasons.append(f"{name}: {error.message}")
    raise Unsupported(f"no driver works in {root}: {'; '.join(reasons)}", hint="`layerfs doctor` says what to do")


def probe(root: Path) -> tuple[Probe, ...]:
    """Try every driver for real in a directory of its own below ``root``, which is left as it was."""
    return tuple(_probe(name, root) for name in names())


def works_unprivileged(name: str, root: Path) -> bool:
    """Tell whether this user can have the driver below ``root`` without a user namespace, by trying it."""
    traits = _probe(name, root).traits
    return traits is not None and traits.unprivileged


def _installed() -> dict[str, EntryPoint]:
    """Return the installed drivers by their names, in the order in which "auto" tries them."""
    found = entrypoints.find(_GROUP)
    ordered = (*(name for name in _PREFERENCE if name in found), *sorted(found.keys() - set(_PREFERENCE)))
    return {name: found[name] for name in ordered}


def _open(found: EntryPoint, root: Path, options: Mapping[str, str] | None) -> Driver:
    try:
        factory: DriverFactory = found.load()
    except ImportError as error:
        what = f"the driver {found.name!r} cannot be loaded: {error}"
        raise Unsupported(what, hint="is its package installed?") from error
    try:
        return factory(root, options or {})
    except OSError as error:
        raise os_error(f"open the driver {found.name}", error) from error


def _probe(name: str, root: Path) -> Probe:
    place = root / f".probe-{name}-{os.urandom(8).hex()}"
    try:
        place.mkdir(0o700)
    except OSError as error:
        return Probe(name, None, os_error(f"try the driver in {root}", error))
    try:
        driver = open_driver(name, place / name)
        driver.close()
    except LayerfsError as error:
        return Probe(name, None, error)
    else:
        return Probe(name, driver.traits, None)
    finally:
        with suppress(LayerfsError):
            tree.remove_tree(place)

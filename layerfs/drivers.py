"""Find the installed drivers and open one; every driver, ours too, is an entry point of ``layerfs.drivers``."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from layerfs import entrypoints, tree
from layerfs.contract import Driver, DriverFactory, Traits
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
    found = set(entrypoints.find(_GROUP))
    return (*(name for name in _PREFERENCE if name in found), *sorted(found.difference(_PREFERENCE)))


def open_driver(name: str, root: Path, options: Mapping[str, str] | None = None) -> Driver:
    """Open a driver on its directory, which is made if it is missing.

    Raise `InvalidArgument` for a name that is not installed and `Unsupported` for one that cannot work here.
    """
    found = entrypoints.find(_GROUP).get(name)
    if found is None:
        raise InvalidArgument(f"there is no driver {name!r}", hint=f"installed are: {', '.join(names())}")
    try:
        factory: DriverFactory = found.load()
    except ImportError as error:
        raise Unsupported(f"the driver {name!r} cannot be loaded: {error}", hint="is its package installed?") from error
    try:
        return factory(root, options or {})
    except OSError as error:
        raise os_error(f"open the driver {name}", error) from error


def probe(root: Path) -> tuple[Probe, ...]:
    """Try every driver for real in a directory of its own below ``root``, which is left as it was."""
    return tuple(_probe(name, root) for name in names())


def works_unprivileged(name: str, root: Path) -> bool:
    """Tell whether this user can have the driver below ``root`` without a user namespace, by trying it."""
    traits = _probe(name, root).traits
    return traits is not None and traits.unprivileged


def choose(root: Path, options: Mapping[str, str] | None = None) -> str:
    """Return the name of the first driver that works below ``root``; raise `Unsupported` if none does."""
    reasons: list[str] = []
    for name in names():
        found = _probe(name, root, options)
        if found.error is None:
            return name
        reasons.append(f"{name}: {found.error.message}")
    raise Unsupported(f"no driver works in {root}: {'; '.join(reasons)}", hint="`layerfs doctor` says what to do")


def _probe(name: str, root: Path, options: Mapping[str, str] | None = None) -> Probe:
    place = root / f".probe-{name}-{secrets.token_hex(8)}"
    try:
        place.mkdir(0o700)
    except OSError as error:
        return Probe(name, None, os_error(f"try the driver in {root}", error))
    try:
        driver = open_driver(name, place / name, options)
        driver.close()
    except LayerfsError as error:
        return Probe(name, None, error)
    else:
        return Probe(name, driver.traits, None)
    finally:
        with suppress(LayerfsError):
            tree.remove_tree(place)

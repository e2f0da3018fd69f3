"""Selection: which manifest is meant where several are offered, one for each platform."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Final

from layerfs.errors import Corrupt, NotFound
from layerfs.image import media_types
from layerfs.image.config import ImageConfig
from layerfs.image.descriptor import Descriptor
from layerfs.image.manifest import Index, Manifest, is_attestation
from layerfs.image.media_types import NotAnImage
from layerfs.image.platform import Platform

_LOG: Final = logging.getLogger(__name__)
_MAX_INDEXES: Final = 100
"""Indexes inside indexes that are read to find one image."""
_LISTED: Final = 20
"""Platforms that an error lists."""

ReadDocument = Callable[[Descriptor], bytes]
"""Return the verified bytes that a descriptor names."""


def select(candidates: Sequence[Descriptor], read: ReadDocument, platform: Platform | None, what: str) -> Manifest:
    """Return the manifest for a platform out of manifests and indexes, at any depth.

    Without a platform the only manifest is taken whatever it is for, and out of several the one for this host. Where
    two are for the same platform the first is taken (image-spec image-index.md, "platform"). Raise `NotFound` that
    lists what there is, and `NotAnImage` where there is none at all.
    """
    if len(candidates) == 1 and candidates[0].media_type not in media_types.INDEXES and platform is None:
        return read_manifest(candidates[0], read)
    wanted = platform or Platform.host()
    offers = _offers(candidates, read, what)
    for acceptable in wanted.accepts():
        if acceptable in offers:
            return read_manifest(offers[acceptable], read)
    listed = ", ".join(str(offer) or "unknown" for offer in list(offers)[:_LISTED])
    raise NotFound(f"{what} has no image for {wanted}: it has {listed}", hint="choose one of these as the platform")


def read_manifest(descriptor: Descriptor, read: ReadDocument) -> Manifest:
    """Return the manifest that a descriptor names; raise as `Manifest.parse` does."""
    media_types.check_manifest(descriptor.media_type, f"manifest {descriptor.digest}")
    return Manifest.parse(read(descriptor), descriptor.media_type)


def read_config(manifest: Manifest, read: ReadDocument) -> ImageConfig:
    """Return the configuration that a manifest names, checked against its layers."""
    config = ImageConfig.parse(read(manifest.config), f"configuration {manifest.config.digest}")
    manifest.check_config(config)
    return config


def _offers(candidates: Sequence[Descriptor], read: ReadDocument, what: str) -> dict[Platform, Descriptor]:
    """Return the first image for each platform."""
    offers: dict[Platform, Descriptor] = {}
    refusal = NotAnImage(f"{what} holds no image")
    for leaf in _leaves(candidates, read, what):
        try:
            offers.setdefault(_platform(leaf, read), leaf)
        except NotAnImage as error:
            _LOG.debug("%s is passed over: %s", leaf.digest, error)
            refusal = error
    if not offers:
        raise refusal
    return offers


def _leaves(candidates: Sequence[Descriptor], read: ReadDocument, what: str) -> Iterator[Descriptor]:
    """Yield what the indexes lead to, in their order, without what accompanies images."""
    waiting = list(reversed(candidates))
    seen: set[str] = set()
    while waiting:
        descriptor = waiting.pop()
        if is_attestation(descriptor):
            continue
        if descriptor.media_type not in media_types.INDEXES:
            yield descriptor
        elif descriptor.digest not in seen:
            seen.add(descriptor.digest)
            if len(seen) > _MAX_INDEXES:
                raise Corrupt(f"{what} has more than {_MAX_INDEXES} indexes")
            waiting.extend(reversed(Index.parse(read(descriptor), descriptor.media_type).manifests))


def _platform(descriptor: Descriptor, read: ReadDocument) -> Platform:
    """Return what an image is for: what its index says, else what its configuration says."""
    media_types.check_manifest(descriptor.media_type, f"manifest {descriptor.digest}")
    if descriptor.platform is not None:
        return descriptor.platform
    return read_config(read_manifest(descriptor, read), read).platform

"""The options of verbs that speak to a registry."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from layerfs.registry.options import Options

Decorator = Callable[[Callable[..., object]], Callable[..., object]]


def plain_option() -> Decorator:
    """Declare the option that allows HTTP without TLS."""
    return click.option("--plain-http", is_flag=True, help="Allow a registry without TLS on another host than this.")


def registry_options(name: str, *, plain_http: bool, mirrors: tuple[str, ...] = ()) -> Options:
    """Return how to speak to the registry of an image's name."""
    from layerfs.image.reference import Reference  # noqa: PLC0415  only when a verb runs
    from layerfs.registry.options import Options  # noqa: PLC0415  as above

    return Options(plain_http=plain_http, mirrors={Reference.parse(name).domain: mirrors})

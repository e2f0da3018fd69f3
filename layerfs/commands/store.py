"""`layerfs store`: the verbs for stores that live in a file."""

from __future__ import annotations

from layerfs.commands.frame.verb import group


@group("store", examples=["layerfs --store /srv/images store create --loop 10G --fs btrfs"])
def command() -> None:
    """Make stores, and close those that live in a file of their own.

    A store in a directory needs neither: the first import makes it.
    """

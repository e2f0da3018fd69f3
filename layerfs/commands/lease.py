"""`layerfs lease`: the verbs for leases."""

from __future__ import annotations

from layerfs.commands.frame.verb import group


@group(
    "lease",
    examples=[
        "lease=$(layerfs lease create --ttl 2h)",
        "layerfs image pull debian:12 --lease $lease",
        "layerfs lease rm $lease",
    ],
)
def command() -> None:
    """Keep what is being built from being pruned, for a time.

    Named images and clones are never pruned, nor is what a living command works with. A lease keeps the rest: images
    without a name between two commands, and what came of a pull that was cut off.
    """

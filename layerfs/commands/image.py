"""`layerfs image`: the verbs for images."""

from __future__ import annotations

from layerfs.commands.frame.verb import group


@group("image", examples=["layerfs image import debian.tar --name debian:12", "layerfs image ls"])
def command() -> None:
    """Bring images in and out, and look at them.

    Images are OCI or Docker images: an OCI layout as a directory or a tar, or a docker archive (`docker save`).
    """

"""Find sub-commands by the entry points ``layerfs.commands``.

A *plug-in* is a verb or group of another distribution.
"""

from __future__ import annotations

from layerfs import entrypoints
from layerfs.entrypoints import EntryPoint

GROUP = "layerfs.commands"


def find(prefix: str) -> dict[str, EntryPoint]:
    """Return the plug-ins directly below ``prefix`` ("" or "image."), by the last part of their name.

    Our own entry points are not among them: they are the built-in table.
    """
    others = {name: found for name, found in sorted(entrypoints.find(GROUP).items()) if not found.is_own}
    names = (name for name in others if name.startswith(prefix) and "." not in name[len(prefix) :])
    return {name[len(prefix) :]: others[name] for name in names}

"""The names that people give to clones, to the snapshots of clones and to leases."""

from __future__ import annotations

import os
import re

from layerfs.errors import InvalidArgument

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}")
_LONGEST_STEM = 100


def is_name(text: str) -> bool:
    """Tell whether something can be such a name."""
    return _NAME.fullmatch(text) is not None


def check_name(text: str, what: str) -> None:
    """Raise `InvalidArgument` for what cannot be the name of ``what``, such as "a clone's name"."""
    if not is_name(text):
        raise InvalidArgument(
            f"{text!r} cannot be {what}",
            hint="use letters, digits, '_', '.' and '-', 128 at the most, a letter or digit first",
        )


def made_up(base: str) -> str:
    """Return a new name that shows what it is based on: "debian:12" gives "debian-12-3f9a1c"."""
    stem = re.sub(r"[^a-zA-Z0-9]+", "-", base.rpartition("/")[2]).strip("-") or "clone"
    return f"{stem[:_LONGEST_STEM]}-{os.urandom(3).hex()}"

"""The extended attributes by which an overlay marks files, and which of all attributes it shows.

*Private* attributes are the overlay's own and are not shown; one that a file in a nested overlay has is *escaped* by
one more ``overlay.`` and is shown without it (kernel document overlayfs.rst, "Nested overlayfs mounts").
"""

from __future__ import annotations

from dataclasses import dataclass, field

from layerfs.contract import Whiteouts
from layerfs.layer.attributes import overlay_prefix

OPAQUE_YES = b"y"
"""Nothing of lower layers shows in the directory."""
OPAQUE_XWHITEOUTS = b"x"
"""Regular files in the directory may be whiteouts; without it the kernel lists them, and shows nothing behind."""


@dataclass(frozen=True, slots=True)
class Marks:
    """The names that one kind of overlay uses; ``prefix`` is ``trusted.overlay.`` or ``user.overlay.``."""

    prefix: bytes
    opaque: bytes = field(init=False)
    whiteout: bytes = field(init=False)
    redirect: bytes = field(init=False)
    metacopy: bytes = field(init=False)
    escaped: bytes = field(init=False)

    def __post_init__(self) -> None:
        for name in ("opaque", "whiteout", "redirect", "metacopy"):
            object.__setattr__(self, name, self.prefix + name.encode())
        object.__setattr__(self, "escaped", self.prefix + b"overlay.")

    def shown(self, name: bytes) -> bytes | None:
        """Return the name by which a file's attribute shows through the union; None where it does not."""
        if not name.startswith(self.prefix):
            return name
        if name.startswith(self.escaped):
            return self.prefix + name[len(self.escaped) :]
        return None

    def stored(self, name: bytes) -> bytes:
        """Return the name by which an attribute that somebody sets through the union is kept on the file."""
        return self.escaped + name[len(self.prefix) :] if name.startswith(self.prefix) else name


TRUSTED = Marks(overlay_prefix(Whiteouts.OVERLAY))
USER = Marks(overlay_prefix(Whiteouts.OVERLAY_USER))


def marks_of(whiteouts: Whiteouts) -> Marks:
    """Return the names for a directory whose whiteouts are of a kind; raise ``ValueError`` for one without."""
    return {Whiteouts.OVERLAY: TRUSTED, Whiteouts.OVERLAY_USER: USER}[whiteouts]

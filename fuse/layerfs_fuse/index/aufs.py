"""Read one directory of a branch of AUFS, where whiteouts are names and not marks (aufs(5), "WHITEOUT").

``.wh.NAME`` hides a name of the branches below, ``.wh..wh..opq`` all of them in its directory, and what else begins
with ``.wh..wh.`` is AUFS's own: none of these names shows. The tar archives of image layers say it in the same way.
"""

from __future__ import annotations

import os

from layerfs.layer.whiteouts import AUFS_PREFIX, OPAQUE_NAME, WHITEOUT_PREFIX
from layerfs_fuse.index.markers import OPAQUE_YES
from layerfs_fuse.index.scan import Listing, Scanner, names_in


class AufsScanner(Scanner):
    """Read the directories of one branch."""

    def _brings(self, fd: int, result: Listing) -> list[bytes]:
        brought: list[bytes] = []
        for name in names_in(fd):
            if not name.startswith(WHITEOUT_PREFIX):
                brought.append(name)
            elif not name.startswith(AUFS_PREFIX):
                result.hidden.add(name[len(WHITEOUT_PREFIX) :])
        return brought

    def listing(self, fd: int) -> Listing:
        """Read the directory ``fd``; what it brings beside a whiteout of the same name is merged with nothing."""
        result = super().listing(fd)
        for name, found in result.found.items():
            if found.is_directory and (name in result.hidden or _is_opaque(fd, name)):
                result.found[name] = found._replace(opaque=OPAQUE_YES)
        result.hidden -= result.found.keys()
        return result


def _is_opaque(fd: int, name: bytes) -> bool:
    try:
        os.stat(name + b"/" + OPAQUE_NAME, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True

"""Redirect-on-write: the first write to a lower file stores the changed blocks only, instead of a copy of the file.

The format on disk, and why no crash loses anything, is in `layerfs_fuse.redirect.format`. `Redirects` belongs to a
union that is mounted; `has_redirects` and `flatten_tree` to whoever gives an upper directory to others: the kernel's
overlay, a commit, a copy.
"""

from __future__ import annotations

from layerfs_fuse.redirect.file import RedirectedFile
from layerfs_fuse.redirect.flatten import flatten_tree, has_redirects
from layerfs_fuse.redirect.store import Redirects

__all__ = ["RedirectedFile", "Redirects", "flatten_tree", "has_redirects"]

"""Redirect-on-write: the first write to a lower file stores the changed blocks only, instead of a copy of the file.

The format on disk, and why no crash loses anything, is in `format`. `store.Redirects` belongs to a union that is
mounted; `flatten.has_redirects` and `flatten.flatten_tree` to whoever gives an upper directory to others: to the
kernel's overlay, to a commit, to a copy.
"""

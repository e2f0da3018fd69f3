"""The union of read-only lower layers and one writable upper directory: logic on directories, with no FUSE in it.

How it is laid out
------------------
*Nodes.* A node id names an inode of the union for as long as somebody remembers it. Ids up to ``index.count`` are rows
of the index of the lower layers (the first row of the inode, where it has several names); ids above are given out one
after the other and never again. A row about which nothing changed is *pristine* and has no object in memory: lookup,
attributes, listing and reading are answered from the mapped index and the layers. Everything else is a `Node`; a
`Directory` is the kind that also holds names.

*Names.* ``Directory.children`` says what the upper directory says about a name: the id of a node in memory; or that a
*whiteout* hides the name; or the kind of something that lies in the upper directory and was not looked at yet. A name
that is not there is looked up in the row ``Directory.below`` of the index, if the directory is merged with one. A
directory without an object has no upper counterpart, and neither has anything in it: so a lookup in it is one question
to the index.

*What memory is truth for.* The upper directory has one owner. Each of its directories is read once, when it is first
touched; from then on names and whiteouts are in memory and changed together with the disk, disk first. The attributes
of a node are its reply to a lookup, kept packed; what changes them behind our back (data written, times of a directory
in which a name changed) marks them stale, and the next question costs one fstat. So what is shown is what the disk
has, and stays the same over a remount. Who changes attributes need not look at all (`Files.change`): a client that
keeps nothing of the answer asks again if it wants to know, and mostly it does not.

*Forgetting.* Lookups are counted for each node, in an array for rows and in the node for others. When the kernel has
forgotten a node, its object goes, and ``children`` says again that something not looked at lies there; memory follows
the kernel's own cache. A node without a name is kept by an open descriptor until it is forgotten, since a client
without OPEN (FUSE_NO_OPEN_SUPPORT) does not say how long it needs it.

*Places.* A node in the upper directory is reached by its directory's descriptor and its name. Directories keep
O_PATH descriptors, at most so many, the oldest closed first; a rename does not disturb them.

*Inode numbers.* A row shows its lower file's own st_ino. What is copied up keeps that number: a directory still merged
with its row and a file with one name, in the place of a row with one name, show the row's; all others have theirs in a
private attribute (``overlay.layerfs.ino``, which an overlay hides and a commit strips), set before they come to another
name, and so have files that take the place of another. New files show the upper file system's number, moved out of the
way where it could be one of the lower's.

*Listings.* An offset is a name's own and no position: names of the row below have their place in the index, others get
ever higher numbers as they come. So nobody who reads a directory while it changes misses or repeats a name that stays.

The upper directory is an overlay's own (Documentation/filesystems/overlayfs.rst), without redirects and metacopies: the
kernel mounts it on the same layers and shows the same tree.
"""

from __future__ import annotations

from layerfs.kernel.syscalls import NOW
from layerfs_fuse.union.handle import Handle
from layerfs_fuse.union.requests import Caller, Changes, Options
from layerfs_fuse.union.union import Union
from layerfs_fuse.union.upper import Upper

__all__ = ["NOW", "Caller", "Changes", "Handle", "Options", "Union", "Upper"]

"""The directories of a layer's root, reached by descriptors only, and what must be known of each of them meanwhile.

A path of a layer is walked one component at a time from the root's descriptor, each opened by ``O_NOFOLLOW`` in the
directory before it; symbolic links are read and followed here, so that absolute ones and ``..`` end at the root. Nobody
who renames or links things meanwhile can lead a name out: a descriptor stays where it is.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Callable, Mapping
from enum import Enum, auto
from types import MappingProxyType

from layerfs.contract import LayerRoot, Whiteouts
from layerfs.errors import Corrupt
from layerfs.layer import attributes
from layerfs.layer.apart import LowerNeeded
from layerfs.layer.below import NOT_THERE, Below, is_whiteout
from layerfs.layer.copyup import copy_up
from layerfs.layer.modes import HeldModes
from layerfs.layer.opened import Directory, Names, OpenDirectories
from layerfs.layer.tar import shown

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_MOST_LINKS = 40
"""Symbolic links followed in one path, as path_resolution(7) has it."""
_MOST_STEPS = 4096
"""Components walked in one path, those of links among them: 40 links could have twenty times as many."""

_ALL_BITS = 0o777

_NONE: Mapping[bytes, bytes] = MappingProxyType({})


class Purpose(Enum):
    """Why a directory is looked for, which decides what happens where it is not."""

    CONTENT = auto()
    """A file of the layer goes into it: make it."""
    WHITEOUT = auto()
    """A name is hidden in it: no directory, nothing to hide, unless lower layers have one."""
    TARGET = auto()
    """A hard link's target lies in it."""


class _Step(Enum):
    """Where a step of a walk can lead to that is no directory."""

    MISSING = auto()
    BLOCKED = auto()
    """Another file has the name, and may not be replaced."""


class Directories:
    """The directories below one root; use as a context manager.

    ``lower`` gives the lower layers merged, for roots that hold one layer only; it is called when they are first looked
    at, if ever. ``tracking`` tells that the root holds files of lower layers too, so that what the layer brings has to
    be remembered.
    """

    def __init__(
        self, root: LayerRoot, lower: Callable[[], Below] | None, *, base: bool, tracking: bool, lenient: bool
    ) -> None:
        self.whiteouts = root.whiteouts
        self.overlay = root.whiteouts is not Whiteouts.REMOVE
        self.lenient = lenient
        self._opaque_name = attributes.opaque_name(root.whiteouts) if self.overlay else b""
        self.open = OpenDirectories()
        self._lower: Below | None = None
        self._show_lower = lower if self.overlay and not base else None
        self._hollow: set[bytes] = set()
        self.uid, self.gid, self.umask = os.geteuid(), os.getegid(), _umask()
        """What a new file has by itself in a plain directory: owner, group, and the mode bits that it lacks."""
        self._modes = HeldModes(needed=self.uid != 0)
        self.owner: tuple[int, int] = (0, 0)
        """User and group of the directories that no layer lists."""
        self.apart = False
        """Whether to raise `LowerNeeded` rather than guess what lower layers hold."""
        fd = os.open(root.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            names: Names | None = {} if tracking else None
            self.root = self._adopt(None, b"", fd, names=names, opaque=base)
            self.root.marked = True
        except BaseException:
            os.close(fd)
            raise

    @property
    def knows_lower(self) -> bool:
        """Tell whether the lower layers can be looked at."""
        return self._show_lower is not None

    def _below(self) -> Below | None:
        """Return the lower layers; None where they cannot be looked at."""
        if self._lower is None and self._show_lower is not None:
            self._lower = self._show_lower()
        return self._lower

    # -- finding -------------------------------------------------------------------------------------------------------

    def known(self, path: bytes) -> Directory | None:
        """Return a directory that is open, with all above it, under this very path; so no part of it is a link."""
        found = self.open.get(b"/" + path) if path else self.root
        above = found
        while above is not None:
            if above.fd < 0:
                return None
            above = above.parent
        return found

    def find(self, parts: list[bytes], purpose: Purpose) -> Directory | None:
        """Walk to a directory, through symbolic links below the root; None where it is not, and need not be made."""
        todo = parts[::-1]
        here = self.root
        missing: list[bytes] = []
        links = steps = 0
        while todo:
            steps += 1
            if steps > _MOST_STEPS:
                raise Corrupt(f"too many directories on the way to {shown(b'/'.join(parts))}, through symbolic links")
            name = todo.pop()
            if not name or name == b".":
                continue
            if missing:
                # ``..`` takes a name back that is not there, as containerd has it; the kernel would say ENOENT.
                missing = missing[:-1] if name == b".." else [*missing, name]
                continue
            if name == b"..":
                here = self._above(here)
                continue
            found = self._enter(here, name, purpose)
            if found is _Step.BLOCKED:
                return None
            if found is _Step.MISSING:
                missing = [name]
            elif isinstance(found, Directory):
                here = found
            else:
                links += 1
                if links > _MOST_LINKS:
                    raise Corrupt(f"too many symbolic links in the path {shown(b'/'.join(parts))}")
                here = self.root if found.startswith(b"/") else here
                todo.extend(found.split(b"/")[::-1])
        return self._make_all(here, missing, purpose)

    def _make_all(self, here: Directory, names: list[bytes], purpose: Purpose) -> Directory | None:
        """Make the directories that a file of the layer needs, or a whiteout of which the target is not known."""
        unknown = self.overlay and not self.knows_lower and not here.opaque
        if names and unknown and self.apart:
            raise LowerNeeded(f"the directory {shown(here.path + b'/' + names[0])}, which the layer does not list,")
        if names and purpose is not Purpose.CONTENT and not (purpose is Purpose.WHITEOUT and unknown):
            return None
        for name in names:
            here = self.make(here, name, 0o755)
            if purpose is Purpose.WHITEOUT:
                self._hollow.add(here.path)
        return here

    def opened(self, here: Directory, name: bytes) -> Directory | None:
        """Return a subdirectory that is open."""
        found = self.open.get(here.path + b"/" + name)
        if found is not None:
            found.parent = here  # the one before may have been closed, and opened again
        return found

    def child(self, here: Directory, name: bytes) -> Directory | None:
        """Return a subdirectory; None where the name is something else or nothing."""
        if (opened := self.opened(here, name)) is not None:
            return opened
        try:
            return self._adopt(here, name, os.open(name, _FLAGS, dir_fd=here.fd))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return None
            raise

    def _above(self, here: Directory) -> Directory:
        """Return the parent, opened again where it was closed; the root is its own."""
        if here.parent is None:
            return here
        if here.parent.fd >= 0:
            return here.parent
        above = self.root
        for name in here.parent.path.split(b"/")[1:]:
            found = self.child(above, name)
            if found is None:
                raise Corrupt(f"the directory {shown(here.parent.path)} went away while the layer was unpacked")
            above = found
        return above

    def _enter(self, here: Directory, name: bytes, purpose: Purpose) -> Directory | bytes | _Step:
        """Take one step: to a directory, to the target of a symbolic link, or to nowhere."""
        found = self.child(here, name)
        if found is not None:
            return found
        try:
            status = os.stat(name, dir_fd=here.fd, follow_symlinks=False)
        except FileNotFoundError:
            return self._enter_lower(here, name, purpose)
        if stat.S_ISLNK(status.st_mode):
            return os.readlink(name, dir_fd=here.fd)
        if stat.S_ISDIR(status.st_mode):
            raise Corrupt(f"{shown(here.path + b'/' + name)} was replaced while the layer was unpacked")
        hidden = self.overlay and is_whiteout(status)
        if purpose is not Purpose.CONTENT:
            return _Step.BLOCKED
        if not hidden and (here.names is None or name in here.names):
            raise Corrupt(f"{shown(here.path + b'/' + name)} is no directory, and the layer has files below it")
        os.unlink(name, dir_fd=here.fd)
        return self.make(here, name, 0o755, opaque=hidden)

    def _enter_lower(self, here: Directory, name: bytes, purpose: Purpose) -> Directory | bytes | _Step:
        """Take a step that the root does not have: a lower directory is made here too, a lower link is followed."""
        below = self.open_lower(here, name)
        if below < 0:
            return _Step.MISSING
        try:
            status = os.fstat(below)
            if stat.S_ISLNK(status.st_mode):
                return os.readlink(b"", dir_fd=below)
            if stat.S_ISDIR(status.st_mode):
                made = self._make_like(here, name, status, below)
                if purpose is not Purpose.CONTENT:
                    self._hollow.add(made.path)
                return made
            return _Step.MISSING
        finally:
            os.close(below)

    def lower_names(self) -> list[bytes]:
        """List the lower layers' root."""
        below = self._below()
        return [] if below is None else below.names()

    def may_be_below(self, here: Directory, name: bytes) -> bool:
        """Tell whether the lower layers have a name, or may have it where they cannot be looked at."""
        below = self._below()
        return below is None or (not here.opaque and below.has((here.path + b"/" + name)[1:]))

    def open_lower(self, here: Directory, name: bytes) -> int:
        """Open a name as the lower layers have it, by O_PATH and without following links; -1 where they do not."""
        below = None if here.opaque else self._below()
        if below is None:
            return -1
        try:
            return below.open((here.path + b"/" + name)[1:])
        except OSError as error:
            if error.errno in NOT_THERE:
                return -1
            raise

    def copy_up(self, here: Directory, name: bytes) -> bool:
        """Copy a file that is no directory from the lower layers into the root; False where they have none."""
        below = self.open_lower(here, name)
        if below < 0:
            return False
        try:
            if stat.S_ISDIR(os.fstat(below).st_mode):
                return False
            copy_up(below, here.fd, name, self._lower_xattrs(below), self.whiteouts, lenient=self.lenient)
            self.mark(here)
            here.touched = True
        finally:
            os.close(below)
        return True

    def _lower_xattrs(self, below: int) -> dict[bytes, bytes]:
        """Return the attributes of a lower file that is held by O_PATH, as a layer carries them."""
        whiteouts = Whiteouts.REMOVE if self._lower is None else self._lower.whiteouts
        return attributes.from_disk(attributes.read(b"/proc/self/fd/%d" % below, follow=True), whiteouts)

    # -- making --------------------------------------------------------------------------------------------------------

    def make(
        self,
        here: Directory,
        name: bytes,
        mode: int,
        owner: tuple[int, int] | None = None,
        xattrs: Mapping[bytes, bytes] = _NONE,
        *,
        opaque: bool = False,
    ) -> Directory:
        """Make a directory, which belongs to root unless told, with times of 1970 until somebody says better.

        In a plain directory a new one inherits nothing, and is right from the start as far as mkdir(2) can make it so.
        """
        path = here.path + b"/" + name
        given = self._modes.now(path, mode)
        os.mkdir(name, given & 0o777, dir_fd=here.fd)
        here.touched = True
        fd = os.open(name, _FLAGS, dir_fd=here.fd)
        names: Names | None = None if here.names is None else {}
        uid, gid = self.owner if owner is None else owner
        if here.plain:
            made = Directory(path, fd, here, name, here.gid, True, here.opaque, (0, 0), names)
            self.open.add(made, here)
            if uid != self.uid or gid != self.gid or here.gid != self.gid:
                self.change_owner(lambda: os.fchown(fd, uid, gid))
            attributes.write(fd, xattrs, lenient=self.lenient)
            if given & (self.umask | 0o7000):
                os.fchmod(fd, given)
            self._is_now(made, mode, gid, xattrs)
        else:
            made = self._adopt(here, name, fd, names=names, opaque=here.opaque)
            made.times = (0, 0)
            self.set_attributes(made, mode, uid, gid, xattrs)
        made.touched = True
        if opaque:
            self.make_opaque(made)
        return made

    def _make_like(self, here: Directory, name: bytes, status: os.stat_result, below: int) -> Directory:
        """Make a directory as the lower layers have it, so that it does not change what they show."""
        xattrs = attributes.to_disk(self._lower_xattrs(below), self.whiteouts)
        made = self.make(here, name, stat.S_IMODE(status.st_mode), (status.st_uid, status.st_gid), xattrs)
        made.times = (status.st_atime_ns, status.st_mtime_ns)
        return made

    def set_attributes(
        self,
        directory: Directory,
        mode: int,
        uid: int,
        gid: int,
        xattrs: Mapping[bytes, bytes],
        *,
        replace: bool = True,
    ) -> None:
        """Give a directory its owner, extended attributes and mode, in this order: each may undo the next.

        ``replace`` takes away attributes that are not among ``xattrs``, such as an ACL inherited from its parent.
        """
        self.change_owner(lambda: os.fchown(directory.fd, uid, gid))
        if replace:
            attributes.replace(directory.fd, xattrs, self.whiteouts, lenient=self.lenient)
        else:
            attributes.write(directory.fd, xattrs, lenient=self.lenient)
        os.fchmod(directory.fd, self._modes.now(directory.path, mode))
        self._is_now(directory, mode, gid, xattrs)

    @staticmethod
    def _is_now(directory: Directory, mode: int, gid: int, xattrs: Mapping[bytes, bytes]) -> None:
        """Remember what new files in a directory inherit."""
        directory.gid = gid
        directory.plain = not mode & stat.S_ISGID and attributes.DEFAULT_ACL not in xattrs

    def change_owner(self, change: Callable[[], None]) -> None:
        """Change an owner; where ids may be squashed, those that the user namespace lacks stay as they are."""
        try:
            change()
        except OSError as error:
            if not self.lenient or error.errno not in (errno.EINVAL, errno.EPERM):
                raise

    def make_opaque(self, directory: Directory) -> None:
        """Hide everything that lower layers have in a directory of an overlay."""
        if self.overlay and not directory.opaque:
            os.setxattr(directory.fd, self._opaque_name, b"y")
            for hidden in (directory, *self.open.below(directory.path)):
                hidden.opaque = True

    def mark(self, directory: Directory) -> None:
        """Remember that this layer has brought something into a directory."""
        here = directory
        while not here.marked and here.parent is not None:
            if here.parent.names is not None:
                here.parent.names[here.name] = here.names
            self._hollow.discard(here.path)
            here.marked = True
            here = here.parent

    def _adopt(
        self, parent: Directory | None, name: bytes, fd: int, *, names: Names | None = None, opaque: bool | None = None
    ) -> Directory:
        """Take over an open descriptor; close another one where too many are open."""
        status = os.fstat(fd)
        path = b"" if parent is None else parent.path + b"/" + name
        if names is None and parent is not None and parent.names is not None:
            known = parent.names.get(name)
            names = {} if known is None else known
        if opaque is None:
            opaque = parent is not None and (
                parent.opaque or (self.overlay and attributes.get(fd, self._opaque_name) == b"y")
            )
        plain = not status.st_mode & stat.S_ISGID and attributes.get(fd, attributes.DEFAULT_ACL) is None
        times = (status.st_atime_ns, status.st_mtime_ns)
        if self._modes.needed:
            self._modes.open_up(path, fd, stat.S_IMODE(status.st_mode))
        directory = Directory(path, fd, parent, name, status.st_gid, plain, opaque, times, names)
        if parent is not None:
            self.open.add(directory, parent)
        return directory

    def is_hollow(self, directory: Directory) -> bool:
        """Tell whether an overlay's directory was made for whiteouts only, so that hiding it hides all of them."""
        return directory.path in self._hollow

    # -- closing -------------------------------------------------------------------------------------------------------

    def forget(self, path: bytes) -> None:
        """Close a directory that is about to be removed, and all below it."""
        self._hollow = {key for key in self._hollow if key != path and not key.startswith(path + b"/")}
        self._modes.forget(path)
        self.open.forget(path)

    def finish(self) -> None:
        """Set the times of all directories that are still open, then the modes that were held back."""
        for directory in (*self.open, self.root):
            directory.settle()
        self._modes.settle(self.root.fd)

    def close(self) -> None:
        """Close everything."""
        self.open.close()
        self.root.close()
        if self._lower is not None:
            self._lower.close()
            self._lower = None


def _umask() -> int:
    """Return the file mode creation mask without changing it (proc_pid_status(5)); all bits where that is not told."""
    try:
        fd = os.open("/proc/thread-self/status", os.O_RDONLY | os.O_CLOEXEC)
        try:
            found = re.search(rb"^Umask:\s*([0-7]+)$", os.read(fd, 1024), re.MULTILINE)
        finally:
            os.close(fd)
    except OSError:
        return _ALL_BITS
    return int(found[1], 8) if found else _ALL_BITS

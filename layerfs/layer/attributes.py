"""Extended attributes of files as layers carry them, and those that an overlay keeps for itself.

An overlay marks its directories by attributes below ``trusted.overlay.`` or, with ``userxattr``, ``user.overlay.``. A
layer's own attributes of that name are escaped by one more ``overlay.``, which the kernel takes away again to show them
(Documentation/filesystems/overlayfs.rst, "Nesting overlayfs mounts"); so a layer cannot give the overlay orders.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping

from layerfs.contract import Whiteouts
from layerfs.errors import Unsupported

_PREFIXES = {Whiteouts.OVERLAY: b"trusted.overlay.", Whiteouts.OVERLAY_USER: b"user.overlay."}
_NAMESPACES = (b"user.", b"trusted.", b"security.", b"system.")
_ORDERS = (b"redirect", b"metacopy", b"whiteout")
"""Marks that make files vanish or take their bytes from elsewhere, which even a nested overlay must not see."""
_FOREIGN = frozenset({b"security.selinux"})
"""Labels that belong to the security policy of the running system; other tools leave them out of layers too."""
DEFAULT_ACL = b"system.posix_acl_default"
ACCESS_ACL = b"system.posix_acl_access"
CAPABILITY = b"security.capability"


def opaque_name(whiteouts: Whiteouts) -> bytes:
    """Return the attribute that marks an opaque directory."""
    return _PREFIXES[whiteouts] + b"opaque"


def to_disk(xattrs: Mapping[bytes, bytes], whiteouts: Whiteouts) -> dict[bytes, bytes]:
    """Translate a layer's attributes for the directory of a snapshot; raise `Unsupported` for orders to an overlay.

    Attributes of other systems (without one of Linux's four namespaces) and those of the host's security policy are
    left out, and so is an empty file capability: the kernel takes it, grants nothing by it, and cannot read it again.
    """
    prefix = _PREFIXES.get(whiteouts)
    result: dict[bytes, bytes] = {}
    for name, value in xattrs.items():
        if not name.startswith(_NAMESPACES) or name in _FOREIGN or (name == CAPABILITY and not value):
            continue
        if prefix is not None and name.startswith(prefix):
            if name[len(prefix) :] in _ORDERS:
                raise Unsupported(
                    f"the layer carries the attribute {name.decode(errors='backslashreplace')!r}, an order to the "
                    "overlay that would hide or replace files",
                    hint="the layer was copied out of an overlay's upper directory by mistake; use the copy or btrfs "
                    "driver if it is meant",
                )
            result[prefix + b"overlay." + name[len(prefix) :]] = value
        else:
            result[name] = value
    return result


def from_disk(xattrs: Mapping[bytes, bytes], whiteouts: Whiteouts) -> dict[bytes, bytes]:
    """Translate the attributes in a snapshot's directory back to those of a layer: marks go, escapes are undone.

    Properties of the file system itself, such as ``btrfs.compression``, are none of a layer's.
    """
    prefix = _PREFIXES.get(whiteouts)
    result: dict[bytes, bytes] = {}
    for name, value in xattrs.items():
        if name in _FOREIGN or not name.startswith(_NAMESPACES):
            continue
        if prefix is None or not name.startswith(prefix):
            result[name] = value
        elif name.startswith(prefix + b"overlay."):
            result[prefix + name[len(prefix) + 8 :]] = value
    return result


def overlay_prefix(whiteouts: Whiteouts) -> bytes:
    """Return the start of the attributes that belong to the overlay; nothing where there is none."""
    return _PREFIXES.get(whiteouts, b"")


def proc_path(directory: int, name: bytes) -> bytes:
    """Return a path to an entry of an open directory, for calls that know no ``dir_fd``; its links are not followed."""
    return b"/proc/self/fd/%d/%s" % (directory, name)


def read(path: int | bytes, *, follow: bool = False) -> dict[bytes, bytes]:
    """Return all attributes of an open file or a path; none where the file system has none.

    ``follow`` follows the last part of a path, which is meant for links below ``/proc/self/fd`` only.
    """
    follow = follow or isinstance(path, int)
    try:
        names = os.listxattr(path, follow_symlinks=follow)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EPERM, errno.EACCES):
            return {}
        raise
    result: dict[bytes, bytes] = {}
    for name in names:
        raw = os.fsencode(name)
        try:
            result[raw] = os.getxattr(path, raw, follow_symlinks=follow)
        except OSError as error:
            # Gone meanwhile; or listed by a security module that does not give it out; or a capability without meaning.
            meaningless = raw == CAPABILITY and error.errno == errno.EINVAL
            if not meaningless and error.errno not in (errno.ENODATA, errno.EOPNOTSUPP):
                raise
    return result


def get(path: int | bytes, name: bytes) -> bytes | None:
    """Return one attribute of an open file, or of a path that is not followed; None where it has none."""
    try:
        return os.getxattr(path, name, follow_symlinks=isinstance(path, int))
    except OSError as error:
        if error.errno in (errno.ENODATA, errno.EOPNOTSUPP, errno.EPERM, errno.EACCES):
            return None
        raise


def write(path: int | bytes, xattrs: Mapping[bytes, bytes], *, lenient: bool) -> None:
    """Set attributes; ``lenient`` leaves out those that the kernel refuses to an ordinary user."""
    for name, value in sorted(xattrs.items()):
        try:
            os.setxattr(path, name, value, follow_symlinks=isinstance(path, int))
        except OSError as error:
            if lenient and error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL):
                continue
            if error.errno == errno.EOPNOTSUPP:
                raise Unsupported(
                    f"the file system cannot store the attribute {name.decode(errors='backslashreplace')!r}",
                    hint="put the store on ext4, xfs or btrfs",
                ) from error
            raise


def replace(path: int | bytes, xattrs: Mapping[bytes, bytes], whiteouts: Whiteouts, *, lenient: bool) -> None:
    """Make the attributes of a file those given; the marks of its overlay stay."""
    for name in from_disk(read(path), whiteouts):
        on_disk = next(iter(to_disk({name: b"any"}, whiteouts)))
        if on_disk in xattrs:
            continue
        try:
            os.removexattr(path, on_disk, follow_symlinks=isinstance(path, int))
        except OSError as error:
            if error.errno not in (errno.ENODATA, errno.EOPNOTSUPP) and not lenient:
                raise
    write(path, xattrs, lenient=lenient)

"""The closed set of errors, each named by what the caller should do about it.

Every error carries a message that says what failed and why, a ``hint`` that says what to try, the exit status of the
command (``docs/reference/exit-status.md``) and the gRPC status code that containerd expects for it
(https://grpc.github.io/grpc/core/md_doc_statuscodes.html).
"""

from __future__ import annotations

import errno
from typing import ClassVar


class LayerfsError(Exception):
    """Report that something failed; the base of every error that layerfs raises on purpose."""

    exit_status: ClassVar[int] = 1
    grpc_code: ClassVar[str] = "UNKNOWN"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class InvalidArgument(LayerfsError):
    """Report an argument that can never be right: mend the call."""

    exit_status = 2
    grpc_code = "INVALID_ARGUMENT"


class NotFound(LayerfsError):
    """Report that what was named does not exist."""

    exit_status = 3
    grpc_code = "NOT_FOUND"


class AlreadyExists(LayerfsError):
    """Report that the name is taken."""

    exit_status = 4
    grpc_code = "ALREADY_EXISTS"


class FailedPrecondition(LayerfsError):
    """Report that the object is in a state that forbids this: change the state first."""

    exit_status = 4
    grpc_code = "FAILED_PRECONDITION"


class Busy(FailedPrecondition):
    """Report that the object is mounted or locked by somebody: try again when it is free."""


class Unsupported(LayerfsError):
    """Report that this host, driver or format cannot do it."""

    exit_status = 5
    grpc_code = "UNIMPLEMENTED"


class PermissionDenied(LayerfsError):
    """Report that the operating system refused: other privileges are needed."""

    exit_status = 6
    grpc_code = "PERMISSION_DENIED"


class NoSpace(LayerfsError):
    """Report that the disk, its inodes or a quota is full: free some, then do it again."""

    grpc_code = "RESOURCE_EXHAUSTED"


class Corrupt(LayerfsError):
    """Report bytes that are not what their digest, their size or their format says."""

    exit_status = 7
    grpc_code = "DATA_LOSS"


class CommandFailed(LayerfsError):
    """Report that another program failed; the message holds its last words."""

    grpc_code = "INTERNAL"


class OperationFailed(LayerfsError):
    """Report that the operating system failed in a way that has no class of its own."""

    grpc_code = "INTERNAL"


_BY_ERRNO: dict[int, tuple[type[LayerfsError], str | None]] = {
    errno.ENOSPC: (NoSpace, "free some space or inodes (`layerfs prune` shows what nobody uses), then try again"),
    errno.EDQUOT: (NoSpace, "raise the quota or free some space, then try again"),
    errno.EACCES: (PermissionDenied, "run it as root, or as the user who owns the path"),
    errno.EPERM: (PermissionDenied, "run it as root, or as the user who owns the path"),
    errno.EROFS: (PermissionDenied, "the file system is mounted read-only"),
    errno.ENOENT: (NotFound, None),
    errno.EEXIST: (AlreadyExists, None),
    errno.EBUSY: (Busy, "find who uses it (`fuser -vm PATH`), then try again"),
    errno.ENOSYS: (Unsupported, "this kernel lacks the call; Linux 5.11 or later is needed"),
    errno.EOPNOTSUPP: (Unsupported, "the file system below does not have this feature"),
}


def os_error(what: str, error: OSError) -> LayerfsError:
    """Translate an ``OSError`` met while doing ``what`` ("mount overlay at /x") into the closed set.

    Use as ``raise os_error("...", error) from error``.
    """
    kind, hint = _BY_ERRNO.get(error.errno or 0, (OperationFailed, None))
    name = error.filename
    where = f" ({name.decode(errors='backslashreplace') if isinstance(name, bytes) else name})" if name else ""
    return kind(f"cannot {what}: {error.strerror or error}{where}", hint=hint)

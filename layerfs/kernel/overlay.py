"""Attach an overlay: by the mount API of Linux 5.2 where it takes lowers one by one, else by mount(2).

Three ways, the best that the kernel has, found by trying. *Descriptors* (Linux 6.13): every directory is handed over
open, so neither the length nor the characters of its path matter. *Strings* (Linux 6.7): ``lowerdir+`` one by one, each
at most 255 bytes. *Legacy*: one option string of mount(2), which the kernel cuts at 4,095 bytes without a word, so
longer ones are never passed. After each mount the number of lowers is read back.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Sequence
from enum import StrEnum
from functools import cache, partial
from pathlib import Path

from layerfs.errors import FailedPrecondition, LayerfsError, OperationFailed, Unsupported, os_error
from layerfs.kernel import mountinfo, syscalls
from layerfs.kernel.descriptors import opened
from layerfs.kernel.kmsg import kernel_log
from layerfs.kernel.options import MAX_LOWERS, Overlay, Parsed, escape_path, legacy_data, parse_overlay

_LONGEST_STRING = 255
"""``fsconfig(2)``: a string value has fewer than 256 bytes."""
_LONGEST_DATA = 4095
"""mount(2): the page of data without its end mark."""
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_FLATTEN = "make an image of fewer layers: squash some of them into one, or flatten the whole image"


class Way(StrEnum):
    """How this kernel takes the directories of an overlay."""

    DESCRIPTORS = "descriptors"
    STRINGS = "strings"
    LEGACY = "legacy"


@cache
def best_way() -> Way:
    """Find out by trying which way this kernel has; nothing is mounted. Raise ``OSError`` where it cannot be asked."""
    try:
        fd = syscalls.fsopen(b"overlay")
    except OSError as error:
        if error.errno == errno.ENOSYS:
            return Way.LEGACY
        raise
    with opened(fd) as context, opened(os.open("/", _DIRECTORY)) as root:
        # Before Linux 6.5 overlay has no parser of single options: any name is taken, and refused at the end.
        if _accepts(partial(syscalls.fsconfig_string, context, b"layerfs-no-such-option", b"x")):
            return Way.LEGACY
        if _accepts(partial(syscalls.fsconfig_fd, context, b"lowerdir+", root)):
            return Way.DESCRIPTORS
        return Way.STRINGS if _accepts(partial(syscalls.fsconfig_string, context, b"lowerdir+", b"/")) else Way.LEGACY


def _accepts(attempt: Callable[[], None]) -> bool:
    try:
        attempt()
    except OSError as error:
        if error.errno == errno.EINVAL:
            return False
        raise
    return True


def attach(parsed: Parsed, source: str, target: Path, way: Way | None = None) -> None:
    """Mount an overlay at ``target``.

    ``way`` is the kernel's best unless given. Raise `Unsupported` for more lowers than the kernel takes or than this
    way can pass whole, `FailedPrecondition` for an upper directory left by a volatile mount, and what `os_error` makes
    of everything else, with the kernel's own words.
    """
    overlay = parse_overlay(parsed.data)
    if len(overlay.lowers) > MAX_LOWERS:
        raise Unsupported(
            f"an overlay of {len(overlay.lowers)} layers: the kernel takes {MAX_LOWERS} at most", hint=_FLATTEN
        )
    with kernel_log() as log:
        try:
            _attach(overlay, parsed, source, target, way or best_way())
        except OSError as error:
            raise _explained(error, overlay, target, log.words("overlayfs:")) from error


def _attach(overlay: Overlay, parsed: Parsed, source: str, target: Path, way: Way) -> None:
    if way is Way.LEGACY or (way is Way.STRINGS and not _fits_strings(overlay)):
        _mount_legacy(overlay, parsed, source, target)
        _check_count(overlay, _count(None, target), target)
        return
    with opened(_make(overlay, parsed, source, way)) as mount:
        identity = syscalls.mount_id(mount)
        syscalls.move_mount(mount, os.fsencode(target))
    _check_count(overlay, _count(identity, target), target)


# -- descriptors and strings -------------------------------------------------------------------------------------------


def _fits_strings(overlay: Overlay) -> bool:
    places = (*overlay.lowers, escape_path(overlay.upper), escape_path(overlay.work))
    return all(len(os.fsencode(place)) <= _LONGEST_STRING for place in places)


def _make(overlay: Overlay, parsed: Parsed, source: str, way: Way) -> int:
    """Return a descriptor of the mount, attached nowhere yet."""
    with opened(syscalls.fsopen(b"overlay")) as context:
        try:
            syscalls.fsconfig_string(context, b"source", os.fsencode(source or "overlay")[:_LONGEST_STRING])
            _configure(context, overlay, way)
            for name in parsed.superblock:
                syscalls.fsconfig_flag(context, os.fsencode(name))
            set_options(context, overlay.data)
            syscalls.fsconfig_create(context)
            return syscalls.fsmount(context, parsed.attributes)
        except OSError as error:
            raise with_messages(error, context) from error


def _configure(context: int, overlay: Overlay, way: Way) -> None:
    # Lowers come last: whether `userxattr` was given matters to none of them, and the kernel counts them as they come.
    for place, name in ((overlay.upper, b"upperdir"), (overlay.work, b"workdir")):
        if place and way is Way.DESCRIPTORS:
            _set_directory(context, name, place)
        elif place:  # a string goes through the kernel's unescaping, except in lowerdir+
            syscalls.fsconfig_string(context, name, os.fsencode(escape_path(place)))
    for lower in overlay.lowers:
        if way is Way.DESCRIPTORS:
            _set_directory(context, b"lowerdir+", lower)
        else:
            syscalls.fsconfig_string(context, b"lowerdir+", os.fsencode(lower))


def _set_directory(context: int, name: bytes, place: str) -> None:
    with opened(os.open(place, _DIRECTORY)) as directory:
        try:
            syscalls.fsconfig_fd(context, name, directory)
        except OSError as error:
            error.filename = place
            raise


def set_options(context: int, data: Sequence[str]) -> None:
    """Give the file system its own options, "key=value" or "flag", one by one."""
    for option in data:
        key, equals, value = option.partition("=")
        if equals:
            syscalls.fsconfig_string(context, os.fsencode(key), os.fsencode(value))
        else:
            syscalls.fsconfig_flag(context, os.fsencode(key))


def with_messages(error: OSError, context: int) -> OSError:
    """Return the error with what the kernel left to read in the context of fsopen(2)."""
    messages: list[str] = []
    while True:
        try:
            message = os.read(context, 4096).decode(errors="replace").strip()
        except OSError:
            break  # ENODATA: no more
        messages.append(message[2:] if message[1:2] == " " else message)  # "e " error, "w " warning, "i " information
    if not messages:
        return error
    return OSError(error.errno, f"{error.strerror}: {'; '.join(messages)}", error.filename)


# -- the option string of mount(2) -------------------------------------------------------------------------------------


def _mount_legacy(overlay: Overlay, parsed: Parsed, source: str, target: Path) -> None:
    """Mount by mount(2); where the string is too long, with lowers relative to their common directory."""
    origin, data = "/", os.fsencode(legacy_data(overlay, overlay.lowers))
    if len(data) > _LONGEST_DATA:
        origin = os.path.commonpath([os.path.dirname(lower) for lower in overlay.lowers])
        relative = [os.path.relpath(lower, origin) for lower in overlay.lowers]
        data = os.fsencode(legacy_data(overlay, relative))
    if len(data) > _LONGEST_DATA:
        raise Unsupported(
            f"an overlay of {len(overlay.lowers)} layers needs {len(data)} bytes of options, and mount(2) of this "
            f"kernel takes {_LONGEST_DATA}",
            hint=f"{_FLATTEN}; or use Linux 6.7 or later, or a store with a shorter path",
        )
    where = os.fsencode(target)
    _call_in(origin, partial(syscalls.mount, os.fsencode(source or "overlay"), where, b"overlay", parsed.flags, data))


def _call_in(directory: str, call: Callable[[], None]) -> None:
    """Call from another working directory without changing that of the process: in a thread with its own."""
    if directory == "/":
        call()
        return
    failures: list[OSError] = []

    def body() -> None:
        try:
            syscalls.unshare(syscalls.CLONE_FS)
            os.chdir(directory)
            call()
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


# -- after the mount ---------------------------------------------------------------------------------------------------


def _count(identity: int | None, target: Path) -> int:
    """Return the number of lowers of a mount: from statmount(2), which looks at one mount only, else from mountinfo."""
    if identity is not None:
        try:
            options = syscalls.mount_options(identity)
        except OSError as error:
            if error.errno not in {errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM}:
                raise
        else:
            return (b"," + options).count(b",lowerdir+=")
    points = mountinfo.at(target)
    return len(points[-1].lowers) if points else 0


def _check_count(overlay: Overlay, count: int, target: Path) -> None:
    if count == len(overlay.lowers):
        return
    syscalls.umount(os.fsencode(target), syscalls.MNT_DETACH)
    raise OperationFailed(
        f"the kernel mounted {count} of {len(overlay.lowers)} layers at {target}; it is unmounted again"
    )


def _explained(error: OSError, overlay: Overlay, target: Path, words: str) -> LayerfsError:
    """Translate a failed mount, with the kernel's words and with what is known to cause it."""
    if error.errno == errno.EINVAL and overlay.work and os.path.lexists(f"{overlay.work}/work/incompat/volatile"):
        return FailedPrecondition(
            f"{overlay.upper} was last written through a volatile mount, which never syncs: after a crash its data "
            "may be lost, so the kernel refuses it",
            hint="unmount it properly and let the driver settle it, or throw these changes away (`layerfs rollback`)",
        )
    if error.errno == errno.ENODEV:
        return Unsupported("this kernel has no overlay file system", hint="modprobe overlay")
    text = f"{error.strerror} ({words})" if words else error.strerror
    what = f"mount an overlay of {len(overlay.lowers)} layers at {target}"
    return os_error(what, OSError(error.errno, text, error.filename))

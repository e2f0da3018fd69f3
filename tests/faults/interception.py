"""Every system call of a process and of its children that changes something on disk, stopped, counted and made to fail.

The kernel itself stops the calls (seccomp_unotify(2)) and asks this process what to do. So nothing escapes: neither
SQLite's writes, nor an ioctl of libbtrfsutil, nor a raw syscall(2), nor a program that is started, all of which a layer
over the C library (LD_PRELOAD) or over our own modules would have to know of; nothing is compiled, and a stop costs
8 µs where ptrace (strace --inject) costs a hundred. A process that is killed while it is stopped never makes the call.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import platform
import select
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import NoReturn

from layerfs.errors import LayerfsError
from layerfs.kernel import syscalls
from layerfs.kernel.children import fork

_CALLS = {
    1: "write", 2: "open", 16: "ioctl", 18: "pwrite64", 20: "writev", 40: "sendfile", 74: "fsync", 75: "fdatasync",
    76: "truncate", 77: "ftruncate", 82: "rename", 83: "mkdir", 84: "rmdir", 85: "creat", 86: "link", 87: "unlink",
    88: "symlink", 90: "chmod", 91: "fchmod", 92: "chown", 93: "fchown", 94: "lchown", 132: "utime", 133: "mknod",
    165: "mount", 166: "umount2", 188: "setxattr", 189: "lsetxattr", 190: "fsetxattr", 197: "removexattr",
    198: "lremovexattr", 199: "fremovexattr", 235: "utimes", 257: "openat", 258: "mkdirat", 259: "mknodat",
    260: "fchownat", 263: "unlinkat", 264: "renameat", 265: "linkat", 266: "symlinkat", 268: "fchmodat", 275: "splice",
    277: "sync_file_range", 280: "utimensat", 285: "fallocate", 296: "pwritev", 306: "syncfs", 316: "renameat2",
    326: "copy_file_range", 328: "pwritev2", 429: "move_mount", 437: "openat2", 452: "fchmodat2", 463: "setxattrat",
}  # fmt: skip
"""The calls that may change something, by their numbers on x86-64 (arch/x86/entry/syscalls/syscall_64.tbl)."""

_TO_DESCRIPTORS = frozenset({"write", "pwrite64", "writev", "pwritev", "pwritev2"})
_OPENS = frozenset({"open", "openat", "openat2"})
_GROWING = _TO_DESCRIPTORS | _OPENS | {
    "sendfile", "splice", "copy_file_range", "mkdir", "mkdirat", "creat", "link", "linkat", "symlink", "symlinkat",
    "mknod", "mknodat", "setxattr", "lsetxattr", "fsetxattr", "setxattrat", "fallocate", "ioctl",
}  # fmt: skip
"""Those that fail on a full disk; the others take no room, or give some back."""

_CHANGING_IOCTLS = frozenset({
    0x40049409,  # FICLONE
    0x4020940D,  # FICLONERANGE
    0x40086602,  # FS_IOC_SETFLAGS
    0x401C5820,  # FS_IOC_FSSETXATTR
    0x00009408,  # BTRFS_IOC_SYNC
    0x5000940E,  # BTRFS_IOC_SUBVOL_CREATE
    0x5000940F,  # BTRFS_IOC_SNAP_DESTROY
    0x50009417,  # BTRFS_IOC_SNAP_CREATE_V2
    0x50009418,  # BTRFS_IOC_SUBVOL_CREATE_V2
    0x5000943F,  # BTRFS_IOC_SNAP_DESTROY_V2
    0x4008941A,  # BTRFS_IOC_SUBVOL_SETFLAGS
    0x80089418,  # BTRFS_IOC_START_SYNC
    0x40089416,  # BTRFS_IOC_WAIT_SYNC
    0x4010942A,  # BTRFS_IOC_QGROUP_CREATE
})  # fmt: skip
_CREATING_IOCTLS = _CHANGING_IOCTLS - {0x9408, 0x5000940F, 0x5000943F, 0x4008941A, 0x80089418, 0x40089416}

_NR_SECCOMP = 317
_SET_MODE_FILTER, _NEW_LISTENER = 1, 8
_AUDIT_ARCH_X86_64 = 0xC000003E
_LOAD, _JUMP_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _NOTIFY = 0x7FFF0000, 0x7FC00000
_INSTRUCTION = struct.Struct("=HBBI")
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
"""``struct seccomp_notif``: id, thread, flags; number, architecture, instruction pointer, arguments."""
_ANSWER = struct.Struct("=QqiI")
_CONTINUE = 1
_CREATES = os.O_CREAT | os.O_TRUNC | (os.O_TMPFILE & ~os.O_DIRECTORY)
_LONGEST_PATH = 4096
_AT_FDCWD = -100
_LIBC = ctypes.CDLL(None, use_errno=True)


def missing() -> str | None:
    """Return why calls cannot be stopped here; None where they can."""
    if platform.machine() != "x86_64":
        return f"the numbers of the system calls of {platform.machine()} are not in the table"
    return None if os.geteuid() == 0 else "stopping system calls is done as root here"


@dataclass(frozen=True, slots=True)
class Fault:
    """What happens at the call of a number, counted from 0: SIGKILL before it (no ``error``), or the call fails.

    ``lasting`` lets every later call that needs room fail, too, as on a disk that is and stays full.
    """

    at: int
    error: int | None = None
    lasting: bool = False


@dataclass(slots=True)
class Outcome:
    """The names of the calls that were counted, the one that was hit, and what the process said at its end."""

    calls: list[str] = field(default_factory=list[str])
    hit: str | None = None
    error: LayerfsError | None = None
    trace: str = ""
    finished: bool = False
    """Whether the work came to its end, by an error or not."""


@dataclass(frozen=True, slots=True)
class _Call:
    """One call that a thread was stopped at."""

    thread: int
    name: str
    arguments: tuple[int, ...]

    def changes(self) -> bool:
        """Tell whether it changes something on disk."""
        if self.name in _TO_DESCRIPTORS:
            shown = self._shown(self._descriptor(0))
            return shown.startswith("/") and not shown.startswith("/dev/null")
        if self.name in _OPENS:
            return self._opens_anew()
        if self.name in {"mkdir", "mkdirat"}:
            return not self._exists(int(self.name == "mkdirat"))
        if self.name == "ioctl":
            return self.arguments[1] & 0xFFFFFFFF in _CHANGING_IOCTLS
        return True

    def grows(self) -> bool:
        """Tell whether it needs room on disk."""
        return self.name in _GROWING and (self.name != "ioctl" or self.arguments[1] & 0xFFFFFFFF in _CREATING_IOCTLS)

    def _opens_anew(self) -> bool:
        """Tell whether an open makes or cuts a file: O_CREAT for one that is there does not."""
        place = int(self.name != "open")
        flags = self.arguments[place + 1]
        if self.name == "openat2":
            flags = int.from_bytes(self._memory(self.arguments[2], 8), "little")
        if flags & (_CREATES & ~os.O_CREAT):
            return True
        return bool(flags & os.O_CREAT) and not self._exists(place)

    def _exists(self, place: int) -> bool:
        """Tell whether the path of an argument, which the descriptor before it is the base of, is there."""
        path = os.fsdecode(self._memory(self.arguments[place], _LONGEST_PATH).partition(b"\0")[0])
        relative = place > 0 and self._descriptor(0) != _AT_FDCWD
        base = f"/proc/{self.thread}/" + (f"fd/{self._descriptor(0)}" if relative else "cwd")
        return os.path.lexists(os.path.join(base, path))

    def _descriptor(self, index: int) -> int:
        return ctypes.c_int(self.arguments[index] & 0xFFFFFFFF).value

    def _shown(self, descriptor: int) -> str:
        with suppress(OSError):
            return os.readlink(f"/proc/{self.thread}/fd/{descriptor}")
        return ""

    def _memory(self, address: int, size: int) -> bytes:
        try:
            with open(f"/proc/{self.thread}/mem", "rb", buffering=0) as memory:
                memory.seek(address)
                first = memory.read(min(size, 4096 - address % 4096))  # what follows may not be mapped
                if len(first) == size or b"\0" in first:
                    return first
                with suppress(OSError):
                    return first + memory.read(size - len(first))
                return first
        except OSError:
            return b""


def run(work: Callable[[], object], fault: Fault | None = None, *, seconds: float = 60) -> Outcome:
    """Do ``work`` in a child, counting its calls; let the fault happen, and return what came of it.

    The child is the first of a PID namespace, so whatever it started ends with it, and it ends with this process: a
    FUSE server whose calls nobody answers would let the whole machine wait. Raise `TimeoutError` for a child that does
    not end.
    """
    ours, theirs = socket.socketpair()
    with ExitStack() as stack:
        stack.enter_context(ours)
        child = fork_into_namespace()
        if child == 0:
            _be_child(work, theirs)
        theirs.close()
        listener = -1
        try:
            listener = socket.recv_fds(ours, 1, 1)[1][0]
            outcome = _serve(listener, child, fault, seconds)
        finally:
            _kill_all(child)
            os.waitpid(child, 0)
            if listener >= 0:
                os.close(listener)  # last of all: whoever is stopped then goes on with ENOSYS
        _read_report(ours, outcome)
    return outcome


def _kill_all(first: int) -> None:
    """Kill the first process of a PID namespace and all others in it.

    The first one ends only when whoever it asked has answered, a FUSE server say, which is stopped at a call: by itself
    the kernel kills the others when the first has ended.
    """
    space = os.readlink(f"/proc/{first}/ns/pid")
    os.kill(first, signal.SIGKILL)
    for process in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError):  # it has ended
            if os.readlink(f"/proc/{process}/ns/pid") == space:
                os.kill(int(process), signal.SIGKILL)


def fork_into_namespace() -> int:
    """Fork; the child is the first process of a PID namespace of its own."""
    before = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
    try:
        syscalls.unshare(syscalls.CLONE_NEWPID)
        child = fork()
        if child:
            syscalls.setns(before, syscalls.CLONE_NEWPID)
        return child
    finally:
        os.close(before)


def own_mounts() -> None:
    """Take a mount namespace of its own, whose mounts end with the process and its children."""
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount(None, b"/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)


def _be_child(work: Callable[[], object], report: socket.socket) -> NoReturn:
    """Stop at every call from now on, work, and report an error: sending is no call that is counted."""
    try:
        syscalls.die_with_parent(signal.SIGKILL)
        listener = _stop_at_calls()
        socket.send_fds(report, [b"!"], [listener])
        os.close(listener)
        try:
            work()
        except LayerfsError as error:
            words = ["error", type(error).__name__, error.message, error.hint or "", traceback.format_exc()]
            report.sendall("\0".join(words).encode())
        except BaseException:  # noqa: BLE001  whatever it is, the test shows it
            report.sendall(f"broken\0{traceback.format_exc()}".encode())
        else:
            report.sendall(b"done")
    finally:
        os._exit(0)


def _stop_at_calls() -> int:
    """Install the filter on this process, and return the descriptor by which its calls are answered."""
    count = len(_CALLS)
    program = [
        (_LOAD, 0, 0, 4),
        (_JUMP_EQUAL, 0, count + 1, _AUDIT_ARCH_X86_64),
        (_LOAD, 0, 0, 0),
        *((_JUMP_EQUAL, count - index, 0, number) for index, number in enumerate(_CALLS)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _NOTIFY),
    ]
    code = ctypes.create_string_buffer(b"".join(_INSTRUCTION.pack(*one) for one in program))
    request = struct.pack("HxxxxxxQ", len(program), ctypes.addressof(code))
    listener: int = _LIBC.syscall(_NR_SECCOMP, _SET_MODE_FILTER, _NEW_LISTENER, request)
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp(2)")
    return listener


def _serve(listener: int, child: int, fault: Fault | None, seconds: float) -> Outcome:
    outcome = Outcome()
    ended = os.pidfd_open(child)
    waiting = select.poll()
    waiting.register(listener, select.POLLIN)
    waiting.register(ended, select.POLLIN)
    try:
        while True:
            ready = waiting.poll(seconds * 1000)
            if not ready:
                raise TimeoutError(f"nothing happened for {seconds} s after {outcome.calls[-3:]}")
            if (listener, select.POLLIN) in ready:
                if not _answer(listener, fault, outcome):
                    return outcome
            else:  # the child has ended, and nobody else is stopped
                return outcome
    finally:
        os.close(ended)


def _answer(listener: int, fault: Fault | None, outcome: Outcome) -> bool:
    """Let the next call go on, or fail; return False where the process is to be killed."""
    notification = bytearray(_NOTIFICATION.size)
    try:
        fcntl.ioctl(listener, _RECEIVE, notification)
    except FileNotFoundError:  # whoever was stopped has been killed meanwhile
        return True
    identity, thread, _, number, _, _, *arguments = _NOTIFICATION.unpack(notification)
    call = _Call(thread, _CALLS[number], tuple(arguments))
    error = 0
    if call.changes():
        index = len(outcome.calls)
        outcome.calls.append(call.name)
        if fault is not None and index == fault.at:
            outcome.hit = call.name
            if fault.error is None:
                return False
            error = fault.error
        elif fault is not None and fault.error and fault.lasting and index > fault.at and call.grows():
            error = fault.error
    answer = _ANSWER.pack(identity, 0, -error, 0) if error else _ANSWER.pack(identity, 0, 0, _CONTINUE)
    with suppress(FileNotFoundError):
        fcntl.ioctl(listener, _SEND, bytearray(answer))
    return True


def _read_report(report: socket.socket, outcome: Outcome) -> None:
    text = b""
    while piece := report.recv(1 << 16):
        text += piece
    match text.decode(errors="replace").split("\0"):
        case ["done"]:
            outcome.finished = True
        case ["error", kind, message, hint, trace]:
            outcome.finished = True
            outcome.error = getattr(sys.modules["layerfs.errors"], kind)(message, hint=hint or None)
            outcome.trace = trace
        case ["broken", trace]:
            raise AssertionError(f"no LayerfsError came out, but\n{trace}")
        case _:
            return

"""The default filter of system calls: what programs need is allowed, what reaches into kernel or host is not.

The filter is the one part of a container's walls that does not depend on namespaces and capabilities being whole. Calls
that a capability guards are let through when the container has that capability. Everything else is answered by EPERM,
as Docker's filter does, which programs know; clone3(2) by ENOSYS, for a filter cannot see its flags behind the pointer,
and the C library then falls back to clone(2).
Sources: seccomp(2); runtime-spec config-linux.md, section Seccomp.
"""

from __future__ import annotations

import errno
from collections.abc import Collection
from typing import Any, Final

_FILES: Final = """
    access chdir chmod chown chown32 close close_range copy_file_range creat dup dup2 dup3 faccessat faccessat2
    fadvise64 fadvise64_64 fallocate fchdir fchmod fchmodat fchmodat2 fchown fchown32 fchownat fcntl fcntl64
    fdatasync fgetxattr flistxattr flock fremovexattr fsetxattr fstat fstat64 fstatat64 fstatfs fstatfs64 fsync
    ftruncate ftruncate64 futimesat getcwd getdents getdents64 getxattr inotify_add_watch inotify_init
    inotify_init1 inotify_rm_watch ioctl io_cancel io_destroy io_getevents io_pgetevents io_setup io_submit
    lchown lchown32 lgetxattr link linkat listxattr llistxattr _llseek lremovexattr lseek lsetxattr lstat
    lstat64 memfd_create mkdir mkdirat mknod mknodat name_to_handle_at newfstatat open openat openat2 pipe pipe2
    poll ppoll ppoll_time64 pread64 preadv preadv2 pselect6 pselect6_time64 pwrite64 pwritev pwritev2 read
    readahead readlink readlinkat readv removexattr rename renameat renameat2 rmdir select _newselect sendfile
    sendfile64 setxattr splice stat stat64 statfs statfs64 statx symlink symlinkat sync sync_file_range
    sync_file_range2 syncfs tee truncate truncate64 umask unlink unlinkat utime utimensat utimensat_time64
    utimes vmsplice write writev epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2
    epoll_wait epoll_wait_old eventfd eventfd2 signalfd signalfd4 timerfd_create timerfd_gettime
    timerfd_gettime64 timerfd_settime timerfd_settime64
"""
_PROCESSES: Final = """
    alarm arch_prctl brk capget capset execve execveat exit exit_group fork get_robust_list get_thread_area
    getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getpgid getpgrp getpid getppid
    getpriority getresgid getresgid32 getresuid getresuid32 getrlimit ugetrlimit getrusage getsid gettid getuid
    getuid32 kill landlock_add_rule landlock_create_ruleset landlock_restrict_self modify_ldt membarrier
    nanosleep pause pidfd_open pidfd_send_signal prctl prlimit64 restart_syscall rseq rt_sigaction rt_sigpending
    rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64
    rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr
    sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 sched_setaffinity
    sched_setattr sched_setparam sched_setscheduler sched_yield seccomp set_robust_list set_thread_area
    set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid setgid32 setgroups setgroups32 setitimer
    getitimer setpgid setpriority setregid setregid32 setresgid setresgid32 setresuid setresuid32 setreuid
    setreuid32 setrlimit setsid setuid setuid32 sigaltstack sigprocmask sigreturn sysinfo tgkill time times
    tkill uname vfork wait4 waitid waitpid ioprio_get ioprio_set getcpu getrandom cachestat
"""
_MEMORY: Final = """
    futex futex_requeue futex_time64 futex_wait futex_waitv futex_wake madvise map_shadow_stack mincore mlock
    mlock2 mlockall mmap mmap2 mprotect mremap mseal msync munlock munlockall munmap pkey_alloc pkey_free
    pkey_mprotect remap_file_pages memfd_secret process_mrelease
"""
_MESSAGES: Final = """
    accept accept4 bind connect getpeername getsockname getsockopt listen recv recvfrom recvmmsg recvmmsg_time64
    recvmsg send sendmmsg sendmsg sendto setsockopt shutdown socketcall socketpair ipc mq_getsetattr mq_notify
    mq_open mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink msgctl msgget
    msgrcv msgsnd semctl semget semop semtimedop semtimedop_time64 shmat shmctl shmdt shmget
"""
_CLOCKS: Final = """
    adjtimex clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime clock_gettime64
    clock_nanosleep clock_nanosleep_time64 gettimeofday timer_create timer_delete timer_getoverrun timer_gettime
    timer_gettime64 timer_settime timer_settime64
"""

_GUARDED: Final = {
    "CAP_DAC_READ_SEARCH": "open_by_handle_at",
    "CAP_SYS_ADMIN": """
        bpf clone clone3 fanotify_init fanotify_mark fsconfig fsmount fsopen fspick lookup_dcookie mount
        mount_setattr move_mount open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname
        setns syslog umount umount2 unshare
    """,
    "CAP_BPF": "bpf",
    "CAP_PERFMON": "perf_event_open",
    "CAP_SYS_BOOT": "reboot",
    "CAP_SYS_CHROOT": "chroot",
    "CAP_SYS_MODULE": "delete_module init_module finit_module",
    "CAP_SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node move_pages",
    "CAP_SYS_PACCT": "acct",
    "CAP_SYS_PTRACE": "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    "CAP_SYS_RAWIO": "iopl ioperm",
    "CAP_SYS_TIME": "settimeofday stime clock_settime clock_settime64",
    "CAP_SYS_TTY_CONFIG": "vhangup",
    "CAP_SYSLOG": "syslog",
}
"""Calls that are allowed with a capability only."""

_NEW_NAMESPACES: Final = 0x7E020000
"""The flags of clone(2) that make namespaces: CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET."""
_PERSONALITIES: Final = (0x0, 0x0008, 0x20000, 0x20008, 0xFFFFFFFF)
"""Linux and 32-bit Linux, both with UNAME26, and the question which it is (personality(2))."""
_AF_VSOCK: Final = 40
"""Sockets to the hypervisor, which know no namespaces."""

_ARCHITECTURES: Final = {
    "x86_64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    "aarch64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
}


def profile(capabilities: Collection[str], machine: str) -> dict[str, Any] | None:
    """Return ``linux.seccomp`` of a configuration for a container with these capabilities.

    ``machine`` is what uname(2) says; None is returned for one whose numbers of system calls are not known here.
    """
    if machine not in _ARCHITECTURES:
        return None
    allowed = set[str](f"{_FILES} {_PROCESSES} {_MEMORY} {_MESSAGES} {_CLOCKS}".split())
    for capability, names in _GUARDED.items():
        if capability in capabilities:
            allowed.update(names.split())
    rules = [_rule(sorted(allowed)), _rule(["socket"], _argument(0, _AF_VSOCK, "SCMP_CMP_NE"))]
    rules += [_rule(["personality"], _argument(0, value, "SCMP_CMP_EQ")) for value in _PERSONALITIES]
    if "CAP_SYS_ADMIN" not in capabilities:
        rules.append(_rule(["clone"], _argument(0, _NEW_NAMESPACES, "SCMP_CMP_MASKED_EQ", two=0)))
        rules.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS})
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.EPERM,
        "architectures": list(_ARCHITECTURES[machine]),
        "syscalls": rules,
    }


def _rule(names: list[str], *arguments: dict[str, Any]) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": names, "action": "SCMP_ACT_ALLOW"}
    return {**rule, "args": list(arguments)} if arguments else rule


def _argument(index: int, value: int, comparison: str, two: int | None = None) -> dict[str, Any]:
    made: dict[str, Any] = {"index": index, "value": value, "op": comparison}
    return made if two is None else {**made, "valueTwo": two}

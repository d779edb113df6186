"""The system calls that computing needs; a seccomp filter (seccomp(2)) refuses all others with EPERM.

Left out, so refused: processes and threads, signals to others, sockets, mounts, namespaces, tracing, limits, owners and
modes of files, and whatever a newer kernel adds.  A call by another architecture's table ends the process.
"""

import ctypes
import os
import platform
import struct

# name: (x86_64, aarch64), 0 where there is none.  The frequent ones first: the filter is read from the top.
ALLOWED = {
    "read": (0, 63),
    "write": (1, 64),
    "futex": (202, 98),
    "mmap": (9, 222),
    "munmap": (11, 215),
    "brk": (12, 214),
    "fstat": (5, 80),
    "newfstatat": (262, 79),
    "close": (3, 57),
    "lseek": (8, 62),
    "getdents64": (217, 61),
    "mremap": (25, 216),
    "mprotect": (10, 226),
    "madvise": (28, 233),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "gettimeofday": (96, 169),
    "nanosleep": (35, 101),
    "getrandom": (318, 278),
    "pread64": (17, 67),
    "readv": (19, 65),
    "writev": (20, 66),
    "stat": (4, 0),
    "lstat": (6, 0),
    "access": (21, 0),
    "readlink": (89, 0),
    "time": (201, 0),
    "getpgrp": (111, 0),
    "poll": (7, 0),
    "select": (23, 0),
    "dup2": (33, 0),
    "statx": (332, 291),
    "readlinkat": (267, 78),
    "faccessat": (269, 48),
    "faccessat2": (439, 439),
    "ppoll": (271, 73),
    "pselect6": (270, 72),
    "dup": (32, 23),
    "dup3": (292, 24),
    "getcwd": (79, 17),
    "getpid": (39, 172),
    "getppid": (110, 173),
    "gettid": (186, 178),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "uname": (63, 160),
    "sysinfo": (99, 179),
    "times": (100, 153),
    "getrusage": (98, 165),
    "getrlimit": (97, 163),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "restart_syscall": (219, 128),
    "membarrier": (324, 283),
    "rseq": (334, 293),
    "set_robust_list": (273, 99),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
# Allowed with these values of the second argument only.  The other commands of both can make the kernel send signals
# to any process of the same user.
COMMANDS = {
    "ioctl": ((16, 29), (0x5401,)),  # TCGETS: is this a terminal?
    "fcntl": ((72, 25), (0, 1, 2, 3, 1030)),  # F_DUPFD, F_GETFD, F_SETFD, F_GETFL, F_DUPFD_CLOEXEC
}
# Numbers, and which argument holds the flags: to read only, or not at all where nothing else bounds what is read.
OPENING = {"openat": ((257, 56), 2), "open": ((2, 0), 1)}
_TO_WRITE = 0x3 | 0x40 | 0x200 | 0x400000  # O_ACCMODE, O_CREAT, O_TRUNC, O_TMPFILE
PRLIMIT = (302, 261)  # allowed where it sets nothing
CLONE3 = (435, 435)  # does not exist, so that the C library falls back on clone, which is refused

_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column of the tables, AUDIT_ARCH_*
_X32 = 0x40000000  # calls of the x32 table carry this bit
_LOAD, _IF_EQUAL, _IF_AT_LEAST, _IF_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_NUMBER, _ARCH, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data
_PR_SET_SECCOMP, _MODE_FILTER = 22, 2


def program(*, reads_files: bool) -> bytes:
    """The filter for this machine, with or without opening files to read; OSError where there is no table for it."""
    machine = platform.machine()
    if machine not in _MACHINES:
        raise OSError(f"no table of system calls for {machine}")
    column, arch = _MACHINES[machine]
    code = _step(_LOAD, _ARCH) + _step(_IF_EQUAL, arch, 1, 0) + _step(_RETURN, _KILL) + _step(_LOAD, _NUMBER)
    if machine == "x86_64":
        code += _step(_IF_AT_LEAST, _X32, 0, 1) + _step(_RETURN, _KILL)
    for numbers in ALLOWED.values():
        if numbers[column] or machine == "x86_64":
            code += _when(numbers[column], _step(_RETURN, _ALLOW))
    refuse = _step(_RETURN, _ERRNO | _EPERM)
    for numbers, argument in OPENING.values() if reads_files else ():
        if numbers[column]:
            read_only = _step(_IF_ANY_BIT, _TO_WRITE, 1, 0) + _step(_RETURN, _ALLOW)
            code += _when(numbers[column], _step(_LOAD, _ARGUMENTS + 8 * argument) + read_only + refuse)
    for numbers, commands in COMMANDS.values():
        chosen = b"".join(_when(command, _step(_RETURN, _ALLOW)) for command in commands)
        code += _when(numbers[column], _step(_LOAD, _ARGUMENTS + 8) + chosen + refuse)
    code += _when(PRLIMIT[column], _null_argument(2) + refuse)
    code += _when(CLONE3[column], _step(_RETURN, _ERRNO | _ENOSYS))
    return code + refuse


def install(code: bytes) -> None:
    """Filters this thread and all it starts, for good.  It must have given up new privileges before."""
    steps = ctypes.create_string_buffer(code)
    head = ctypes.create_string_buffer(struct.pack("HP", len(code) // 8, ctypes.addressof(steps)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_SECCOMP, _MODE_FILTER, head, 0, 0):
        raise OSError(ctypes.get_errno(), f"seccomp: {os.strerror(ctypes.get_errno())}")


def _step(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, if_true, if_false, operand)


def _when(value: int, then: bytes) -> bytes:
    """`then` where the loaded word equals `value`, else what follows."""
    return _step(_IF_EQUAL, value, 0, len(then) // 8) + then


def _null_argument(index: int) -> bytes:
    """Allows where all 64 bits of an argument are 0."""
    low = _ARGUMENTS + 8 * index
    high_is_zero = _step(_LOAD, low + 4) + _when(0, _step(_RETURN, _ALLOW))
    return _step(_LOAD, low) + _when(0, high_is_zero)

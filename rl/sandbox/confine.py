"""What a process gives up before it runs a program: limits, capabilities, files, and its view of the machine.

Each function takes one thing away for good and raises OSError where the kernel refuses to.  Only ctypes and the
standard library: this runs in the worker, which knows nothing else.  See landlock(7), user_namespaces(7),
pivot_root(2), capset(2).
"""

import ctypes
import os
import platform
import resource
import struct
import sys
from collections.abc import Sequence

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 4, 36, 38
_PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL = 47, 4
_CAPABILITY_VERSION = 0x20080522
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446  # the same on every architecture
_RIGHTS_BY_ABI = {1: 13, 2: 14, 3: 15, 5: 16}  # how many kinds of access to files each version knows
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_PATH_BENEATH = 1
_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = (
    0x20000,
    0x4000000,
    0x8000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
_RDONLY, _NOSUID, _NODEV, _NOEXEC, _REMOUNT, _BIND, _REC, _PRIVATE = 1, 2, 4, 8, 32, 4096, 16384, 1 << 18
_KEPT_FLAGS = {2: _NOSUID, 4: _NODEV, 8: _NOEXEC, 1024: 1024, 2048: 2048, 4096: 1 << 21}  # of statvfs -> of mount
_DETACH = 2
_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_CAPSET = {"x86_64": 126, "aarch64": 91}
_ROOT_PLACES = ("/mnt", "/srv", "/tmp")  # any folder that holds nothing of the interpreter's

_libc = ctypes.CDLL(None, use_errno=True)


def limit(*, cpu_seconds: int, memory_bytes: int) -> None:
    """Hard limits.  CPU seconds run out with SIGKILL at once: the first process of a pid namespace ignores SIGXCPU."""
    limits = {
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_NOFILE: 32,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_STACK: 8 << 20,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_MEMLOCK: 0,
    }
    for name, value in limits.items():
        _, hard = resource.getrlimit(name)
        least = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(name, (least, least))


def die_with(parent: int | None) -> None:
    """Ends this process when its parent ends; at once if that has happened and the parent is known."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, 9, 0, 0, 0), "PR_SET_PDEATHSIG")
    if parent is not None and os.getppid() != parent:
        os._exit(1)


def adopt_orphans() -> None:
    """Makes every descendant whose parent ended a child of this process, where it can be found and killed."""
    _check(_libc.prctl(_PR_SET_SUBREAPER, 1, 0, 0, 0), "PR_SET_CHILD_SUBREAPER")


def drop_privileges() -> None:
    """No capability, no way to a new one, and no other process of this user may read this one's memory."""
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
    _check(_libc.prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR_ALL, 0, 0, 0), "PR_CAP_AMBIENT")
    head = ctypes.create_string_buffer(struct.pack("Ii", _CAPABILITY_VERSION, 0))
    _call(_CAPSET, head, ctypes.create_string_buffer(24), name="capset")
    _check(_libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "PR_SET_DUMPABLE")


def landlock(readable: Sequence[str]) -> int:
    """Leaves nothing of the file system but reading below `readable`; the version of landlock that did it."""
    version = _libc.syscall(_LANDLOCK_CREATE, None, 0, 1)
    _check(version, "landlock")
    num_rights = _RIGHTS_BY_ABI[max(known for known in _RIGHTS_BY_ABI if known <= version)]
    words = [(1 << num_rights) - 1]
    words += [0b11] if version >= 4 else []  # binding and connecting TCP
    words += [0b11] if version >= 6 else []  # abstract sockets and signals to processes that are not so restricted
    attributes = struct.pack(f"{len(words)}Q", *words)
    ruleset = _libc.syscall(_LANDLOCK_CREATE, attributes, len(attributes), 0)
    _check(ruleset, "landlock_create_ruleset")
    for path in readable:
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", _READ_FILE | (_READ_DIR if os.path.isdir(path) else 0), folder)
        _check(_libc.syscall(_LANDLOCK_ADD, ruleset, _PATH_BENEATH, rule, 0), "landlock_add_rule")
        os.close(folder)
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
    _check(_libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0), "landlock_restrict_self")
    os.close(ruleset)
    return version


def enter_namespaces() -> None:
    """New user, mount, network, IPC and host name spaces; the next child is the first process of a new pid space."""
    user, group = os.getuid(), os.getgid()
    _unshare(_NEWUSER | _NEWNS | _NEWPID | _NEWNET | _NEWIPC | _NEWUTS)
    for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)


def own_pid_space() -> int:
    """A descriptor of the pid space this process lives in, for `return_to`."""
    return os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)


def fork_into_new_pid_space(own: int) -> int:
    """`os.fork`, but the child is the first process of a pid space of its own: when it ends, all in it end."""
    _unshare(_NEWPID)
    pid = os.fork()
    if pid:
        _check(_libc.setns(own, _NEWPID), "setns")
    return pid


def new_root(readable: Sequence[str]) -> None:
    """A root folder that holds `readable`, read-only, and nothing else; to be called in a mount space of one's own."""
    place = next(
        (folder for folder in _ROOT_PLACES if os.path.isdir(folder) and not any(_within(p, folder) for p in readable)),
        None,
    )
    if place is None:
        raise OSError(f"no folder among {_ROOT_PLACES} to build a root in")
    _mount(None, "/", None, _REC | _PRIVATE)
    _mount("tmpfs", place, "tmpfs", _NOSUID | _NODEV, b"size=1m,mode=0755")
    for path in readable:
        target = place + path
        os.makedirs(target if os.path.isdir(path) else os.path.dirname(target), mode=0o755, exist_ok=True)
        if not os.path.isdir(path):
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
        _mount(path, target, None, _BIND | _REC)
        has = os.statvfs(target).f_flag
        kept = sum(flag for seen, flag in _KEPT_FLAGS.items() if has & seen)
        _mount(None, target, None, _BIND | _REMOUNT | _RDONLY | _NOSUID | _NODEV | kept)
    os.chdir(place)
    _call(_PIVOT_ROOT, b".", b".", name="pivot_root")  # the old root now lies over the new one
    _check(_libc.umount2(b".", _DETACH), "umount")
    os.chdir("/")
    _mount(None, "/", None, _BIND | _REMOUNT | _RDONLY | _NOSUID | _NODEV)


def standard_library() -> list[str]:
    """The real paths of what the interpreter imports from; `sys.path` is rewritten to them."""
    sys.path[:] = [os.path.realpath(path) for path in sys.path if path and os.path.exists(path)]
    sys.path_importer_cache.clear()
    return [path for path in sys.path if not any(_within(path, other) and path != other for other in sys.path)]


def _within(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _unshare(flags: int) -> None:
    _check(_libc.unshare(flags), "unshare")


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: bytes | None = None) -> None:
    source_bytes, kind_bytes = (None if text is None else text.encode() for text in (source, kind))
    result = _libc.mount(source_bytes, target.encode(), kind_bytes, ctypes.c_ulong(flags), data)
    _check(result, f"mount {target}")


def _call(number: dict[str, int], *arguments: object, name: str) -> None:
    if platform.machine() not in number:
        raise OSError(f"{name}: its number on {platform.machine()} is not known")
    _check(_libc.syscall(number[platform.machine()], *arguments), name)


def _check(result: int, name: str) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), f"{name}: {os.strerror(ctypes.get_errno())}")

"""The self-test: a hostile program that says what it managed to do, and what each layer must have refused it."""

from typing import Any

CODE = '''
import os, resource, socket, sys


def attempt(action):
    try:
        action()
    except (OSError, ValueError, ImportError):
        return False
    return True


def probe():
    return {
        "honest": attempt(lambda: (sorted([3, 1, 2]), sum(range(10)))),
        "environment": set(os.environ) - {"PYTHONHASHSEED", "LD_LIBRARY_PATH", "LC_CTYPE"} != set(),
        "more memory": attempt(lambda: resource.setrlimit(resource.RLIMIT_AS, (-1, -1))),
        "fork": attempt(fork),
        "exec": attempt(execute),
        "socket": attempt(lambda: socket.socket().close()),
        "signal": attempt(lambda: os.kill(os.getppid() or 1, 0)),
        "namespace": attempt(unshare),
        "read": any(attempt(lambda path=path: open(path).close()) for path in ("/etc/passwd", "/proc/self/maps")),
        "list": any(attempt(lambda path=path: os.listdir(path)) for path in ("/etc", "/proc", "/home")),
        "write": any(attempt(lambda path=path: write(path)) for path in ("/tmp", "/dev/shm", ".")),
        "see": any(os.path.exists(path) for path in ("/etc/passwd", "/proc/self", "/dev/null")),
    }


def execute():
    try:
        os.execv("/nowhere", ["nowhere"])
    except FileNotFoundError:
        pass


def write(folder):
    os.open(folder, os.O_WRONLY | os.O_TMPFILE)


def fork():
    if os.fork() == 0:
        os._exit(0)


def unshare():
    import ctypes
    if ctypes.CDLL(None).unshare(0x10000000):
        raise OSError
'''

REFUSED_BY = {
    "environment": ("rlimits",),
    "fork": ("seccomp",),
    "exec": ("seccomp",),
    "socket": ("seccomp",),
    "signal": ("seccomp",),
    "namespace": ("seccomp",),
    "read": ("seccomp", "landlock", "namespaces"),
    "list": ("seccomp", "landlock", "namespaces"),
    "write": ("seccomp", "landlock", "namespaces"),
    "see": ("namespaces",),
    "more memory": ("seccomp",),
}


def holes(managed: Any, active: tuple[str, ...]) -> list[str]:
    """What the program managed although an active layer refuses it; a program that could not even try is one too."""
    if not isinstance(managed, dict) or set(managed) != {"honest", *REFUSED_BY} or managed["honest"] is not True:
        return [f"an honest program gave {managed!r}"]
    return [
        f"{name} in spite of {' + '.join(layer for layer in layers if layer in active)}"
        for name, layers in REFUSED_BY.items()
        if managed[name] is not False and any(layer in active for layer in layers)
    ]

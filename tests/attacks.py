"""Programs that try to get the marks without the answer, to get out, or not to end.

Each defines `f`.  The tests want f(7) == 49 and f(8) == 64, which no program here says; one that got out says so by
returning "escaped".  CANARY is replaced by the path of a readable file, whose text is "escaped" too.
"""

import pathlib

_PRELUDE = '''
import ctypes, gc, os, resource, signal, socket, subprocess, sys, threading, time

def f(x):
    return "refused"

def attempt(action):
    global f
    try:
        action()
    except Exception:
        return
    f = lambda x: "escaped"

def syscall(*arguments):
    if ctypes.CDLL(None).syscall(*arguments) < 0:
        raise OSError
'''

# Pretending to be right.
_FORGERIES = {
    "exits": "sys.exit(0)",
    "exits at once": "os._exit(0)",
    "exits in f": "def f(x):\n    os._exit(0)",
    "raises SystemExit in f": "def f(x):\n    raise SystemExit(0)",
    "raises KeyboardInterrupt": "def f(x):\n    raise KeyboardInterrupt",
    "raises StopIteration": "def f(x):\n    raise StopIteration",
    "prints that it passed": "print('PASS')\nos.write(1, b'passed\\n')\nos._exit(0)",
    "equal to everything": (
        "class E:\n    def __eq__(self, other): return True\n    __hash__ = None\ndef f(x): return E()"
    ),
    "int equal to everything": "class E(int):\n    def __eq__(self, other): return True\ndef f(x): return E(3)",
    "list equal to everything": "class E(list):\n    def __eq__(self, other): return True\ndef f(x): return E()",
    "str equal to everything": "class E(str):\n    def __eq__(self, other): return True\ndef f(x): return E('no')",
    "pretends to be an int": (
        "class E:\n    __class__ = int\n    def __index__(self): return 49\ndef f(x): return E()"
    ),
    "true and not a number": "class E:\n    def __bool__(self): return True\ndef f(x): return E()",
    "dict subclass": (
        "import collections\nclass E(collections.Counter):\n    __eq__ = lambda s, o: True\n"
        "def f(x): return E()"
    ),
    "not a number": "def f(x): return float('nan')",
    "true": "def f(x): return True",
    "a text of the number": "def f(x): return str(x * x)",
    "the number in a list": "def f(x): return [x * x]",
    "returns itself": "def f(x): return f",
    "returns a generator without end": "def f(x):\n    while True: yield 49",
    "writes answers of its own": (
        "for fd in range(3, 6):\n"
        "    try: os.write(fd, b'[0, \"value\", \"[\\\\\"bool\\\\\", true]\"]\\n[1, \"value\", \"[]\"]\\n')\n"
        "    except OSError: pass"
    ),
    "writes a verdict": (
        "for fd in range(3, 9):\n    try: os.write(fd, b'{\"status\": \"done\", \"passed\": 2}\\n')\n"
        "    except OSError: pass"
    ),
    "writes the link's answer": (
        "for fd in range(3, 6):\n"
        "    try: os.write(fd, b'[\"value\", \"[\\\\\"str\\\\\",\\\\\"49\\\\\"]\"]\\n' * 9)\n"
        "    except OSError: pass"
    ),
    "patches builtins": (
        "import builtins\nbuiltins.type = lambda v: int\nbuiltins.format = lambda *a: '31'\n"
        "builtins.isinstance = lambda *a: True"
    ),
    "patches json": "import json\njson.dumps = lambda *a, **k: '[0, \"value\", true]'\ndef f(x): return object()",
    "patches the encoder": (
        "import thinkfirst.rl.sandbox.values as v\nv.dumps = lambda value: '[\"bool\",true]'\n"
        "def f(x): return object()"
    ),
    "patches code through gc": (
        "def always(*a): return True\nfor o in gc.get_objects():\n"
        "    if getattr(o, '__name__', '') in ('_passes', '_execute', '_value') and hasattr(o, '__code__'):\n"
        "        o.__code__ = (lambda *a: ['value', '[\"bool\",true]']).__code__"
    ),
    "patches the module that runs it": (
        "from thinkfirst.rl.sandbox import program\nprogram._execute = lambda *a: ''\nprogram._name = lambda *a: ''"
    ),
    "assertions pass": "import builtins\nbuiltins.AssertionError = type('Never', (BaseException,), {})\n__debug__",
    "replaces exit and write": "os._exit = os.write = lambda *a: 0",
    "closes all descriptors": "os.closerange(0, 200)",
    "puts something else in place of its socket": (
        "r = os.open(os.path.dirname(os.__file__) + '/os.py', 0)\nos.dup2(r, 3)\nos.dup2(r, 4)"
    ),
    "empty": "del f",
    "whitespace": "\n\n   \t",
    "markdown": "```python\ndef f(x): return x * x\n",
    "a null byte": "f = '\0'",
    "a lone surrogate": "def f(x): return '\\ud800'",
    "nested brackets to compile": "x = " + "(" * 5000 + ")" * 5000,
    "nested minus signs to compile": "x = " + "-" * 100000 + "1",
    "a decorator on every name": "f = property(lambda self: 49)",
}

# Searching for the answer.
_SEARCHES = {
    "frames": (
        "def f(x):\n    frame = sys._getframe()\n    while frame:\n        for v in list(frame.f_locals.values()):\n"
        "            if isinstance(v, dict) and v.get('expected'): return v['expected'][0]\n"
        "        frame = frame.f_back\n    return str(x)"
    ),
    "objects": (
        "def f(x):\n    for o in gc.get_objects():\n"
        "        if isinstance(o, (tuple, list)) and len(o) == 2 and list(o) == [7 * 7, 8 * 8]: return o[0]\n"
        ""
        "    return 'no'"
    ),
    "tests in the objects": (
        "def f(x):\n    for o in gc.get_objects():\n        if isinstance(o, dict) and 'steps' in o and "
        "any('=' in s for s in o['steps']): return 'escaped'\n    return 'no'"
    ),
    "main": "def f(x):\n    return getattr(sys.modules['__main__'], 'expected', 'no')",
    "a file": "f = lambda x: open('CANARY').read()",
    "a file by descriptor": "f = lambda x: os.read(os.open('CANARY', os.O_RDONLY), 100).decode()",
    "a file by mmap": (
        "import mmap\nf = lambda x: mmap.mmap(os.open('CANARY', os.O_RDONLY), 0, prot=1).read().decode()"
    ),
    "a folder": "attempt(lambda: os.listdir(os.path.dirname('CANARY')))",
    "passwords": "attempt(lambda: open('/etc/passwd').read())",
    "home folder": "attempt(lambda: os.listdir(os.path.expanduser('~root') if os.getuid() == 0 else '/home'))",
    "environment": "f = lambda x: os.environ.get('THINKFIRST_CANARY')",
    "environment of others": "attempt(lambda: [open(f'/proc/{n}/environ').read() for n in (1, os.getpid(), 'self')])",
    "memory": "attempt(lambda: open('/proc/self/mem', 'rb').read(1))",
    "memory of others": "attempt(lambda: [open(f'/proc/{os.getppid()}/maps').read()])",
    "accelerator": "attempt(lambda: [os.open(p, os.O_RDWR) for p in ('/dev/accel0', '/dev/vfio/vfio')])",
    "leftovers of other jobs": "attempt(lambda: os.read(5, 1))",
    "process_vm_readv": "attempt(lambda: syscall(310, os.getppid() or 1, 0, 0, 0, 0, 0))",
    "ptrace": "attempt(lambda: syscall(101, 16, os.getppid() or 1, 0, 0))",
}

# Getting out, or harming what is outside.
_ESCAPES = {
    "fork": "def go():\n    if os.fork() == 0:\n        os.setsid()\n        while True: time.sleep(1)\nattempt(go)",
    "fork by the C library": "attempt(lambda: 1 / (1 + ctypes.CDLL(None).fork()))",
    "clone3": "attempt(lambda: syscall(435, ctypes.create_string_buffer(88), 88))",
    "vfork": "attempt(lambda: syscall(58))",
    "thousand threads": (
        "attempt(lambda: [threading.Thread(target=time.sleep, args=(9,)).start() for _ in 'x' * 1000])"
    ),
    "processes": "import multiprocessing\nattempt(lambda: multiprocessing.Process(target=print).start())",
    "subprocess": "attempt(lambda: subprocess.run([sys.executable, '-c', '']))",
    "shell": "attempt(lambda: 1 / (os.system('true') == 0))",
    "exec": "attempt(lambda: os.execv('/bin/sh', ['sh', '-c', 'exit 0']))",
    "exec of memory": "attempt(lambda: os.memfd_create('x'))",
    "kills its parent": "attempt(lambda: os.kill(os.getppid() or 1, 0))",
    "kills everybody": "attempt(lambda: os.kill(-1, 0))",
    "kills many": (
        "def go():\n    for pid in range(1, 5000):\n        try: os.kill(pid, 0)\n"
        "        except ProcessLookupError: pass\nattempt(go)"
    ),
    "kills its group": "attempt(lambda: os.killpg(0, 0))",
    "kills by a descriptor": "attempt(lambda: os.pidfd_open(os.getppid() or 1))",
    "has the kernel send signals": (
        "import fcntl\ndef go():\n    fcntl.fcntl(3, 8, os.getppid() or 1)\n    fcntl.fcntl(3, 10, 9)\nattempt(go)"
    ),
    "has a terminal send signals": "import fcntl\nattempt(lambda: fcntl.ioctl(3, 0x8901, b'\\1\\0\\0\\0'))",
    "limits its parent": (
        "attempt(lambda: resource.prlimit(os.getppid(), 7, resource.prlimit(os.getppid(), 7)))"
    ),
    "raises its limits": "attempt(lambda: resource.setrlimit(resource.RLIMIT_CPU, (-1, -1)))",
    "raises its file size": "attempt(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)))",
    "priority": "attempt(lambda: os.setpriority(os.PRIO_PROCESS, 0, -5))",
    "writes to the temporary folder": "attempt(lambda: os.open('/tmp', os.O_WRONLY | os.O_TMPFILE))",
    "writes here": "attempt(lambda: os.open('.', os.O_WRONLY | os.O_TMPFILE))",
    "writes to shared memory": "attempt(lambda: os.open('/dev/shm', os.O_WRONLY | os.O_TMPFILE))",
    "writes to the standard library": "attempt(lambda: open(os.__file__, 'a'))",
    "writes to the canary": "attempt(lambda: open('CANARY', 'a'))",
    "truncates": "attempt(lambda: os.truncate('CANARY', 7))",
    "deletes": "attempt(lambda: os.unlink('CANARY'))",
    "makes a folder": "attempt(lambda: os.mkdir('/tmp/thinkfirst_attack'))",
    "links": "attempt(lambda: os.symlink('CANARY', '/tmp/thinkfirst_attack'))",
    "modes": "attempt(lambda: os.chmod('CANARY', 0o777))",
    "a named pipe": "attempt(lambda: os.mkfifo('/tmp/thinkfirst_attack'))",
    "the internet": "attempt(lambda: socket.create_connection(('1.1.1.1', 53), 1))",
    "this machine": "attempt(lambda: socket.create_connection(('127.0.0.1', 22), 1))",
    "metadata server": "attempt(lambda: socket.create_connection(('169.254.169.254', 80), 1))",
    "names": "attempt(lambda: socket.getaddrinfo('metadata.google.internal', 80))",
    "abstract socket": "attempt(lambda: socket.socket(socket.AF_UNIX).bind('\\0thinkfirst'))",
    "listens": "attempt(lambda: socket.create_server(('127.0.0.1', 0)))",
    "socket pair": "attempt(lambda: socket.socketpair())",
    "sends a descriptor": "attempt(lambda: socket.send_fds(socket.socket(fileno=3), [b'x'], [3]))",
    "mount": "attempt(lambda: syscall(165, b'none', b'/', b'tmpfs', 0, 0))",
    "chroot": "attempt(lambda: os.chroot('/'))",
    "new namespaces": "attempt(lambda: syscall(272, 0x10000000))",
    "joins a namespace": "attempt(lambda: syscall(308, 3, 0))",
    "another user": "attempt(lambda: os.setuid(12345))",
    "io_uring": "attempt(lambda: syscall(425, 8, ctypes.create_string_buffer(120)))",
    "bpf": "attempt(lambda: syscall(321, 0, 0, 0))",
    "keys": "attempt(lambda: syscall(250, 0, -3, 1))",
    "user faults": "attempt(lambda: syscall(323, 0))",
    "perf events": "attempt(lambda: syscall(298, 0, 0, -1, -1, 0))",
    "shared memory of System V": "attempt(lambda: syscall(29, 0, 4096, 0o1600))",
    "kernel log": "attempt(lambda: syscall(103, 3, ctypes.create_string_buffer(9), 9))",
    "the x32 table": "attempt(lambda: syscall(0x40000000 | 39))",
    "lifts the filter": "attempt(lambda: 1 / (ctypes.CDLL(None).prctl(22, 0, 0) == 0))",
}

# Dying, and filling what there is.
_CRASHES = {
    "reads address 0": "ctypes.string_at(0)",
    "aborts": "os.abort()",
    "recursion": "def f(x): return f(x)",
    "recursion without limit": "sys.setrecursionlimit(10**8)\ndef f(x): return f(x)",
    "hundred gigabytes": "def f(x): return bytearray(10**11)",
    "grows": "def f(x):\n    a = []\n    while True: a.append(bytearray(1 << 20))",
    "a large result": "def f(x): return 'x' * 10**8",
    "a large number": "def f(x): return 1 << 10**7",
    "a deep result": "def f(x):\n    a = []\n    for _ in range(10**5): a = [a]\n    return a",
    "a result within itself": "def f(x):\n    a = []\n    a.append(a)\n    return a",
    "floods the link": "while True:\n    os.write(4, b'x' * 65536)",
    "deep brackets as an answer": "os.write(3, b'[' * 60000 + b'\\n')\nos.write(4, b'[' * 60000 + b'\\n')",
    "a long number as an answer": "os.write(3, b'1' * 60000 + b'\\n')\nos.write(4, b'1' * 60000 + b'\\n')",
    "an exception with a metaclass": (
        "class M(type):\n    __name__ = property(lambda c: 1 / 0)\n    def __repr__(c): return 1 / 0\n"
        "class E(Exception, metaclass=M):\n    pass\ndef f(x): raise E"
    ),
}

# Not ending: each takes its whole time.
_ENDLESS = {
    "floods its socket": "while True:\n    os.write(3, b'x' * 65536)",
    "floods with answers": "while True:\n    os.write(3, b'[0, \"error\", \"\"]\\n' * 999)",
    "loops": "while True: pass",
    "loops in f": "def f(x):\n    while True: pass",
    "sleeps": "time.sleep(10**6)",
    "catches everything": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "ignores signals": (
        "for n in range(1, 65):\n    try: signal.signal(n, signal.SIG_IGN)\n    except (OSError, ValueError): pass\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass"
    ),
    "a large power": "def f(x): return 10 ** 10 ** 9",
    "a regular expression": "import re\ndef f(x): return re.match('(a+)+$', 'a' * 40 + 'b')",
    "prints": "while True: print('x' * 1000)",
    "writes to standard output": "while True: os.write(1, b'x' * 65536)",
    "str of its exception": (
        "class E(Exception):\n    def __str__(self):\n        while True: pass\n    __repr__ = __str__\n"
        "def f(x):\n    str(E())"
    ),
    "ends in __del__": "class D:\n    def __del__(self):\n        while True: pass\ndef f(x):\n    D()",
    "at exit": "import atexit\natexit.register(time.sleep, 10**6)\nos._exit = lambda n: time.sleep(10**6)",
    "traces": "def trace(*a):\n    while True: pass\nsys.settrace(trace)\ndef f(x): return 'no'",
    "waits for its own socket": "def f(x):\n    os.read(3, 1)\n    while True: os.read(3, 1) or time.sleep(1)",
}

QUICK = {
    name: _PRELUDE + code for table in (_FORGERIES, _SEARCHES, _ESCAPES, _CRASHES) for name, code in table.items()
}
ENDLESS = {name: _PRELUDE + code for name, code in _ENDLESS.items()}


def processes_below(root: int) -> set[int]:
    """`root` and the processes that descend from it."""
    parents = {}
    for folder in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            parents[int(folder.name)] = int((folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue  # ended while we looked
    found = {root}
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found

"""Protects the host from programs, and verdicts from being forged.

Most attacks try all their ways, note those that worked in `got`, and end with `assert not got`: the
program passes if and only if all failed inside, and the test looks outside for what it may have
done. Namespaces and the filter of system calls stand behind each other; with the fixture `wall`
each must hold alone.

The attacks are real, so they must not be real where a sandbox is broken: a test of a broken one
has to fail, not to delete the machine that it runs on. What destroys is aimed at things made for
the test, loops end, and before an attack on everything the program makes sure that it is where
everything is read-only (`HARMLESS`), or the first process of its own namespace (`ALONE`).
"""

from __future__ import annotations

import os
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from helpers.forgeries import CAREFUL, CARELESS, FORGERIES, SEND, WOULD_SUCCEED
from helpers.sandboxed import run, sandbox

from deltalearn.evaluate.sandbox import Outcome, Sandbox, Status, bubblewrap, interpreter, seccomp
from deltalearn.evaluate.sandbox.interpreter import ENVIRONMENT

TRY = """
got = []
def attempt(action, *arguments):
    try: got.append((action.__name__, arguments, action(*arguments)))
    except Exception as error: assert isinstance(error, (OSError, ValueError)), repr(error)
"""
ALL_FAILED = "\nassert not got, got\n"
ALONE = "import os\nassert os.getpid() == 1 and os.getppid() == 0, 'not alone: no attack'\n"
# Read-only is a property of the mount, kept by the kernel whatever the user's rights.
HARMLESS = """
import os
def read_only(path): return bool(os.statvfs(path).f_flag & os.ST_RDONLY)
for folder, folders, _ in os.walk('/'):
    if folder == '/tmp' and os.statvfs('/tmp').f_blocks * os.statvfs('/tmp').f_frsize <= 1 << 26:
        folders.clear()
    else: assert read_only(folder), f'{folder} is writable: no attack'
"""


@pytest.fixture(params=["namespaces and filter", "namespaces alone"])
def wall(request, monkeypatch) -> Sandbox:
    sandbox()  # skips where there is none
    if request.param == "namespaces alone":
        everything = struct.pack("=HBBI", seccomp.RETURN, 0, 0, seccomp.ALLOW)
        monkeypatch.setattr(seccomp, "program", lambda: everything)
    return Sandbox(allow=True, packages=())


def attack(program: str, place: Sandbox | None = None, **settings: float) -> Outcome:
    """Run an attack; no way of it may have worked."""
    place = place or sandbox()
    (found,) = place.run_programs([TRY + program + ALL_FAILED], workers=1, **settings)
    assert found.passed, found
    return found


# -- the network ----------------------------------------------------------------------------------


def test_tcp_reaches_nothing(wall):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", port)).close()  # the test itself can
        server.accept()[0].close()
        server.settimeout(0.2)
        attack(
            "import socket\n"
            f"for host in ('127.0.0.1', 'localhost', '0.0.0.0', '1.1.1.1', '10.0.0.1'):\n"
            f"    attempt(socket.create_connection, (host, {port}), 1)\n"
            f"    attempt(socket.create_connection, (host, 80), 1)\n",
            wall,
        )
        with pytest.raises(TimeoutError):
            server.accept()


def test_udp_reaches_nothing(wall):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))
        server.settimeout(0.2)
        address = server.getsockname()
        wall.run_programs(
            [
                "import socket\n"
                "with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:\n"
                f"    s.sendto(b'secret', {address})"
            ]
        )
        with pytest.raises(TimeoutError):
            server.recvfrom(100)
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"control", address)
        assert server.recvfrom(100)[0] == b"control"


def test_names_are_not_resolved(wall):
    attack("import socket\nattempt(socket.getaddrinfo, 'example.com', 80)", wall)


def test_abstract_sockets_of_the_host_are_out_of_reach(wall):
    name = f"\0deltalearn-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        attack(
            "import socket\n"
            f"def connect(): socket.socket(socket.AF_UNIX).connect({name!r})\n"
            "attempt(connect)",
            wall,
        )
        server.settimeout(0.2)
        with pytest.raises(TimeoutError):
            server.accept()


def test_no_socket_of_any_family_can_be_made():
    """Also those that no namespace holds, such as vsock, which reaches a virtual machine's host."""
    attack(
        "import socket\n"
        "for family in range(46):\n"
        "    for kind in (1, 2, 3, 5): attempt(socket.socket, family, kind)\n"
        "a, b = socket.socketpair(); a.send(b'x'); assert b.recv(1) == b'x'"  # is no network
    )


# -- the host's files -----------------------------------------------------------------------------


def test_a_secret_file_and_variable_are_not_readable(wall, tmp_path, monkeypatch):
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret")
    monkeypatch.setenv("DELTALEARN_SECRET", "the other secret")
    attack(
        "import os\n"
        f"for path in ({str(secret)!r}, '/etc/passwd', '/etc/shadow', '/etc/hostname',\n"
        f"    {str(Path.cwd())!r}, {str(Path(__file__))!r}, {str(Path.home() / '.bashrc')!r},\n"
        "    '/home', '/var', '/sys', '/run', '/boot', '/mnt', '/opt', '/usr/bin',\n"
        "    '/proc'):\n"
        "    attempt(os.stat, path)\n"
        "    attempt(open, path)\n"
        "    attempt(os.listdir, path)\n"
        f"assert set(os.environ) <= {set(ENVIRONMENT) | {'PWD', 'LC_CTYPE'}}, os.environ\n"
        "assert os.uname().nodename == 'sandbox'",
        wall,
    )
    assert secret.read_text() == "the secret"


def test_the_root_holds_what_python_needs_and_no_more():
    prefix = Path(os.path.realpath(sys._base_executable)).parents[1]
    allowed = {"dev", "etc", "lib", "lib64", "packages", "tmp", "usr", prefix.parts[1]}
    attack(
        "import os, pathlib\n"
        f"assert set(os.listdir('/')) <= {allowed}, os.listdir('/')\n"
        "assert set(os.listdir('/dev')) == {'null', 'zero', 'random', 'urandom'}\n"
        "if os.path.exists('/etc'): assert os.listdir('/etc') == ['ld.so.cache']\n"
        "assert all(name.startswith('numpy') for name in os.listdir('/packages'))\n"
        # on the way to the interpreter there is nothing beside it
        f"for path in pathlib.Path({str(prefix)!r}).parents:\n"
        "    if len(path.parts) > 2: assert len(os.listdir(path)) == 1, path\n"
    )


@pytest.fixture
def victim(tmp_path, wall) -> Path:
    """A folder with a file, which sandboxes show as if it were a package."""
    folder = tmp_path / "victim"
    folder.mkdir(mode=0o755)
    (folder / "precious").write_text("x")
    shown = interpreter.Interpreter(wall._interpreter.executable, {"victim": folder})
    wall._launcher = bubblewrap.Bubblewrap(shown, wall._limits)
    return folder


def unharmed(victim: Path) -> bool:
    (left,) = victim.iterdir()
    return left.name == "precious" and left.read_text() == "x" and victim.stat().st_mode == 0o40755


def test_nothing_outside_its_directory_can_be_written(wall, victim):
    library = Path(os.__file__).parent
    before = sorted(os.listdir(library))
    attack(
        "import os\n"
        # new things only, which would harm nobody
        f"for place in ('/', '/dev', '/usr/lib', {str(library)!r}, '/packages', '/root'):\n"
        "    attempt(open, place + '/planted-by-a-test', 'x')\n"
        "    attempt(os.mkdir, place + '/planted-by-a-test')\n"
        "place = '/packages/victim'\n"
        "assert os.listdir(place) == ['precious']\n"
        "attempt(os.mkdir, place + '/new')\n"
        "attempt(os.chmod, place, 0o777)\n"
        "attempt(os.rename, place, place + '-moved')\n"
        "attempt(os.rename, place + '/precious', place + '/moved')\n"
        "attempt(os.truncate, place + '/precious', 0)\n"
        "attempt(os.utime, place + '/precious')\n"
        "attempt(os.remove, place + '/precious')\n"
        "attempt(open, place + '/precious', 'w')\n"
        "attempt(open, place + '/precious', 'r+')\n",
        wall,
    )
    assert unharmed(victim)
    assert sorted(os.listdir(library)) == before


def test_links_lead_nowhere(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret")
    attack(
        "import os\n"
        f"secret = {str(secret)!r}\n"
        "os.symlink(secret, 'a'); os.symlink('../' * 30 + secret[1:], 'b')\n"
        "os.symlink('/proc/1/root' + secret, 'c')\n"
        "for name in 'abc': attempt(open, name); attempt(open, name, 'w')\n"
        "attempt(os.link, secret, 'd')\n"
        "os.symlink('/', 'root'); attempt(open, 'root' + secret)\n"
        "attempt(os.chroot, '/tmp')"
    )
    assert secret.read_text() == "the secret"
    assert os.listdir(tmp_path) == ["secret.txt"]


@pytest.mark.slow
def test_deleting_everything_deletes_nothing(wall, victim):
    library = Path(os.__file__).parent
    before = sorted(os.listdir(library))
    (found,) = wall.run_programs(
        [
            HARMLESS + "import shutil\n"
            f"for place in ('/tmp', '/packages/victim', {str(library)!r}, '/'):\n"
            "    shutil.rmtree(place, ignore_errors=True)\n"
            "raise ValueError(sorted(os.listdir('/tmp')))"
        ],
        timeout=30,
    )
    assert found.detail == "ValueError: []"  # its own directory it may
    assert unharmed(victim)
    assert sorted(os.listdir(library)) == before
    assert wall.run_programs(["import json"])[0].passed


# -- proc, devices, mounts, other processes -------------------------------------------------------


def test_there_is_no_proc_to_play_tricks_with(wall):
    attack(
        "import os\n"
        "for name in ('1/environ', '1/root', '1/cwd', '1/mem', 'self/mem', 'self/environ',\n"
        "    'self/fd', 'self/exe', 'sys/kernel/core_pattern', 'sysrq-trigger', 'kcore', 'keys'):\n"
        "    attempt(open, '/proc/' + name)\n"
        "    attempt(open, '/proc/' + name, 'w')\n"
        "    attempt(os.listdir, '/proc/' + name)",
        wall,
    )


def test_devices_cannot_be_opened_or_made(wall):
    attack(
        "import os, stat\n"
        "for name in ('mem', 'kmsg', 'port', 'sda', 'vda', 'nvme0n1', 'fuse', 'kvm', 'tty',\n"
        "    'shm', 'ptmx', 'pts/0', 'net/tun', 'vsock', 'nvidia0', 'mapper/control'):\n"
        "    attempt(os.stat, '/dev/' + name)\n"
        "for kind in (stat.S_IFBLK, stat.S_IFCHR):\n"
        "    attempt(os.mknod, 'device', kind | 0o666, os.makedev(1, 1))\n"
        "assert open('/dev/null').read() == ''",
        wall,
    )


SYSCALL = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def syscall(number, *arguments):
    if libc.syscall(number, *arguments) == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return number
"""


def test_nothing_can_be_mounted(wall):
    """Nor with the capabilities of a namespace of its own, where it can make one."""
    mount, unmount = (seccomp.REFUSED[n][_column()] for n in ("mount", "umount2"))
    attack(
        SYSCALL + "os.mkdir('m')\n"
        f"for kind in (b'proc', b'tmpfs', b'sysfs', b'devtmpfs', b'overlay'):\n"
        f"    attempt(syscall, {mount}, b'none', b'/tmp/m', kind, 0, None)\n"
        f"attempt(syscall, {mount}, b'/', b'/tmp/m', None, 4096, None)\n"
        f"attempt(syscall, {mount}, None, b'/', None, 32 | 4096, None)\n"  # remount writable
        f"for place in (b'/usr/lib', b'/tmp', b'/'): attempt(syscall, {unmount}, place, 2)\n",
        wall,
    )
    assert "/tmp/m " not in Path("/proc/mounts").read_text()  # noqa: S108


def test_other_processes_cannot_be_traced_or_read():
    attack(
        SYSCALL + "buffer = ctypes.create_string_buffer(64)\n"
        "vector = (ctypes.c_void_p * 2)(ctypes.addressof(buffer), 64)\n"
        f"ptrace, read = {_number('ptrace')}, {_number('process_vm_readv')}\n"
        "for pid in (0, 1, 2, os.getpid(), os.getppid()):\n"
        "    for request in (0, 16, 0x4206): attempt(syscall, ptrace, request, pid, None, None)\n"
        "    attempt(syscall, read, pid, vector, 1, vector, 1, 0)"
    )


def test_every_refused_call_is_refused_by_the_kernel():
    numbers = {n: p[_column()] for n, p in seccomp.REFUSED.items() if p[_column()] is not None}
    found = run(
        SYSCALL + "wrong = []\n"
        f"for name, number in {numbers}.items():\n"
        "    try: wrong.append((name, syscall(number, 0, 0, 0, 0, 0, 0)))\n"
        "    except OSError as error:\n"
        "        if error.errno != 1: wrong.append((name, error))\n"
        f"for number in ({seccomp.NEWEST + 1}, 0x40000000 + 39):\n"  # x32's getpid
        "    try: wrong.append((number, syscall(number)))\n"
        "    except OSError as error:\n"
        "        if error.errno != 38: wrong.append((number, error))\n"
        "assert not wrong, wrong"
    )
    assert found.passed, found


def test_the_user_is_nobody_without_rights(wall):
    attack(
        "import os, resource\n"
        "assert (os.getuid(), os.geteuid(), os.getgid()) == (65534, 65534, 65534)\n"
        "attempt(os.setuid, 0); attempt(os.setgid, 0); attempt(os.setgroups, [0])\n"
        "attempt(os.nice, -5); attempt(os.chown, '/tmp', 0, 0)\n"
        "for what in (resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_FSIZE):\n"
        "    attempt(resource.setrlimit, what, (-1, -1))\n"
        "attempt(os.execv, '/bin/sh', ['sh']); attempt(os.execv, '/usr/bin/env', ['env'])\n",
        wall,
    )


def test_only_its_own_descriptors_are_open(wall, tmp_path):
    with open(tmp_path / "open.txt", "w+") as file:
        os.set_inheritable(file.fileno(), True)
        (found,) = wall.run_programs(
            [
                "import os, stat\n"
                "kinds = {}\n"
                "for number in range(1024):\n"
                "    try: kinds[number] = stat.S_IFMT(os.fstat(number).st_mode)\n"
                "    except OSError: pass\n"
                "assert kinds.pop(0) == stat.S_IFCHR and os.read(0, 9) == b''\n"  # /dev/null
                "assert kinds.pop(1) == kinds.pop(2) == stat.S_IFIFO\n"
                "assert list(kinds.values()) == [stat.S_IFIFO], kinds"  # the verdict's
            ]
        )
    assert found.passed, found


# -- killing, staying, multiplying ----------------------------------------------------------------


def test_killing_reaches_nothing_outside(wall):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as canary:
        attack(
            ALONE + "import signal\n"
            f"for pid in (-1, {canary.pid}, {os.getpid()}, *range(2, 3000)):\n"
            "    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP):\n"
            "        attempt(os.kill, pid, number)\n"
            "os.kill(1, signal.SIGKILL)",  # itself, which it cannot either
            wall,
        )
        time.sleep(0.1)
        assert canary.poll() is None
        state = Path(f"/proc/{canary.pid}/stat").read_text().rpartition(")")[2].split()[0]
        assert state != "T"
        canary.communicate(b"\n")
        assert canary.returncode == 0


def test_a_fork_bomb_does_not_even_begin():
    program = (
        "import os, threading, subprocess, sys\n"
        "def fork():\n"
        "    pid = os.fork()\n"
        "    if pid == 0: os._exit(0)\n"
        "    return pid\n"
        "def terminal():\n"
        "    pid, _ = os.forkpty()\n"
        "    if pid == 0: os._exit(0)\n"
        "    return pid\n"
        "def spawn(): return os.posix_spawn(sys.executable, ['python', '-c', 'pass'], {})\n"
        "def thread():\n"
        "    try: threading.Thread(target=print).start()\n"
        "    except RuntimeError as error: raise OSError from error\n"
        "def child(): return subprocess.Popen([sys.executable, '-c', 'pass'])\n"
        "for way in (fork, terminal, spawn, thread, child) * 3: attempt(way)\n"
    )
    attack(program)
    detail = run("import os\nfor _ in range(9):\n    if not os.fork(): os._exit(0)").detail
    assert detail.startswith("PermissionError")


@pytest.mark.slow
def test_without_the_filter_a_fork_bomb_dies_with_its_namespace(wall):
    """The second wall alone: children die at the end, however they hide."""
    marker = f"deltalearn-bomb-{os.getpid()}"
    program = (
        "import os, sys, time, signal\n"
        "for _ in range(20):\n"
        "    try: pid = os.fork()\n"
        "    except OSError: break\n"  # with the filter
        "    if pid == 0:\n"
        "        os.setsid()\n"
        "        if os.fork(): os._exit(0)\n"
        "        for n in set(range(1, 32)) - {signal.SIGKILL, signal.SIGSTOP}:\n"
        "            signal.signal(n, signal.SIG_IGN)\n"
        "        for n in range(64):\n"
        "            try: os.close(n)\n"
        "            except OSError: pass\n"
        f"        os.execv(sys.executable, [sys.executable, '-S', '-c',\n"
        f"            'import time; time.sleep(100)', {marker!r}])\n"
        "time.sleep(1)\n"
    )
    seen: list[int] = []
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.05):
            seen.append(_with_argument(marker))

    looking = threading.Thread(target=look)
    looking.start()
    (found,) = wall.run_programs([program])
    left = _with_argument(marker)
    done.set()
    looking.join()
    assert found.passed, found
    assert left == 0
    filtered = sandbox()._launcher._filter == wall._launcher._filter
    assert max(seen) == 0 if filtered else max(seen) > 0  # the test can see them


def _with_argument(marker: str) -> int:
    """How many processes of the host have `marker` among their arguments."""
    count = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            arguments = path.read_bytes().split(b"\0")
        except OSError:  # it has just ended
            continue
        count += marker.encode() in arguments
    return count


def test_an_endless_loop_that_ignores_all_signals_ends():
    found = run(
        "import signal\n"
        "for number in range(1, 65):\n"
        "    try: signal.signal(number, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\n"
        "while True:\n"
        "    try:\n"
        "        while True: pass\n"
        "    except BaseException: pass",
        timeout=1,
    )
    assert found.status is Status.TIMED_OUT
    assert found.detail == "used 1 s of processor time"
    assert found.cpu < 2


@pytest.mark.slow
def test_sleeping_forever_ends():
    for program in (
        "import time\nwhile True: time.sleep(1000)",
        "import os\nr, w = os.pipe()\nos.read(r, 1)",
        "import os, time\nfor n in range(64):\n"
        "    try: os.close(n)\n    except OSError: pass\ntime.sleep(1000)",
    ):
        found = run(program, timeout=1, wall=2)
        assert found.status is Status.TIMED_OUT
        assert found.detail == "still ran after 2 s of wall clock"


# -- filling up -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_memory_ends_at_the_limit():
    small = sandbox(memory=512 << 20)
    grow = "x = []\nfor n in range(64): x.append(bytearray(1 << 24))"  # 1 GiB, were there no limit
    counted = grow.replace("\n", "\ntry:\n    ") + "\nexcept MemoryError: x = None"
    counted, plain, doubled = small.run_programs(
        [counted + "\nraise ValueError(n << 24)", grow, "x = b'x'\nfor _ in range(30): x += x"]
    )
    assert (256 << 20) < int(counted.detail.removeprefix("ValueError: ")) <= (512 << 20)
    assert plain.status is doubled.status is Status.MEMORY


def test_memory_that_no_process_owns_cannot_be_had():
    attack(
        "import os, mmap\n"
        "attempt(os.memfd_create, 'x')\n"
        "attempt(open, '/dev/shm/x', 'w')\n"
        "attempt(mmap.mmap, -1, 3 << 30)"
    )


def test_the_disk_is_small_and_not_the_hosts():
    free = shutil.disk_usage("/tmp").free  # noqa: S108
    found = run(
        "import os, errno\n"
        "total = 0\n"
        "try:\n"
        "    for i in range(1000):\n"
        "        with open(f'{i}', 'wb', buffering=0) as file:\n"
        "            total += file.write(bytes(1 << 20))\n"
        "except OSError as error: assert error.errno == errno.ENOSPC, error\n"
        "raise ValueError(total >> 20)"
    )
    assert 60 <= int(found.detail.removeprefix("ValueError: ")) <= 64
    assert shutil.disk_usage("/tmp").free > free - (40 << 20)  # noqa: S108 (others write too)


def test_huge_files_are_refused_sparse_ones_too():
    attack(
        "import os\n"
        "file = open('x', 'wb', buffering=0)\n"
        "def seek_and_write(): file.seek(1 << 40); file.write(b'x')\n"
        "attempt(seek_and_write)\n"
        "attempt(file.truncate, 1 << 30)\n"
        "attempt(os.posix_fallocate, file.fileno(), 0, 1 << 30)"
    )


def test_millions_of_empty_files_end_early():
    for action in (
        "open(str(i), 'w').close()",
        "os.mkdir('d'); os.chdir('d')",
        "os.symlink('x' * 4000, str(i))",
    ):
        found = run(f"import os\nfor i in range(200_000):\n    {action}", timeout=5)
        assert found.status in (Status.OUTPUT, Status.FAILED)  # too many files; no space
        assert found.cpu < 4


def test_huge_output_ends_early():
    verdict = "max(n for n in range(64) if is_open(n))"
    head = (
        "import os\ndef is_open(n):\n    try: os.fstat(n)\n    except OSError: return False\n"
        "    return True\n"
    )
    for descriptor in ("1", "2", verdict):
        found = run(f"{head}for _ in range(9999): os.write({descriptor}, bytes(1 << 16))")
        assert found.status is Status.OUTPUT, found
        assert found.cpu < 10


# -- forging the verdict --------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORGERIES)
def test_a_verdict_cannot_be_forged(name):
    """Each is followed by a test that fails, as a wrong program's would."""
    found = run(FORGERIES[name] + "\nassert False, 'the test failed'", timeout=1)
    assert not found.passed, found


@pytest.mark.parametrize("name", WOULD_SUCCEED)
def test_forgeries_would_succeed_with_a_careless_wrapper(name, monkeypatch, tmp_path):
    """So that the test above tests something."""
    sandbox()
    text = interpreter.INSIDE.read_text()
    assert text.count(CAREFUL) == 1
    weak = tmp_path / "weak.py"
    weak.write_text(text.replace(CAREFUL, CARELESS))
    monkeypatch.setattr(interpreter, "INSIDE", weak)
    assert run(FORGERIES[name] + "\nassert False, 'the test failed'").passed


def test_the_token_is_new_each_time(monkeypatch):
    """A program that knows the token of the run before it is none the wiser."""
    place = sandbox()
    known: list[bytes] = []
    start = type(place._launcher).start

    def spy(self, command, streams, verdict):
        known.append(os.pread(streams["stdin"], 16, 0))
        return start(self, command, streams, verdict)

    monkeypatch.setattr(bubblewrap.Bubblewrap, "start", spy)
    place.run_programs(["pass"] * 3)
    send = f"import os\n{SEND}\nsend({known[-1]!r})\nos._exit(0)"
    assert not place.run_programs([send])[0].passed
    assert len(set(known)) == 4


def _column() -> int:
    return seccomp.MACHINES[os.uname().machine][0] if os.uname().machine in seccomp.MACHINES else 0


def _number(name: str) -> int | None:
    return seccomp.REFUSED[name][_column()]

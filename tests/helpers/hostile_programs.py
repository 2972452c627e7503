"""Programs that try to get out of a sandbox, to outlast it, or to harm what runs beside it.

Each prints `ESCAPED` where it has got what it was after. CANARY is a file of the host's, PORT of a server on the host's loopback,
PID a process of the host's, SECRET a variable of the parent's environment.
"""

from __future__ import annotations

READS = {
    "passwd": "print('ESCAPED' if 'root' in open('/etc/passwd').read() else '')",
    "shadow": "open('/etc/shadow').read(); print('ESCAPED')",
    "canary": "open('CANARY').read(); print('ESCAPED')",
    "canary_by_link": "import os\nos.symlink('CANARY', '/tmp/link')\nopen('/tmp/link').read(); print('ESCAPED')",
    "canary_by_hard_link": "import os\nos.link('CANARY', '/tmp/link'); print('ESCAPED')",
    "canary_by_parents": "open('../../../../../..CANARY').read(); print('ESCAPED')",
    "canary_by_root_of_others": (
        "import os\n"
        "for pid in filter(str.isdigit, os.listdir('/proc')):\n"
        "    try:\n        open(f'/proc/{pid}/rootCANARY').read(); print('ESCAPED')\n"
        "    except OSError: pass"
    ),
    "canary_by_descriptors": (
        "import os\n"
        "for number in range(3, 256):\n"
        "    try:\n        os.fstat(number); os.listdir(number); print('ESCAPED')\n"
        "    except OSError: pass"
    ),
    "home": "import os\nprint('ESCAPED' if os.listdir(os.path.expanduser('~')) else '')",
    "home_of_the_host": "import os, sys\n"
    "print('ESCAPED' if [n for n in os.listdir('HOST_HOME') if not sys.prefix.startswith('HOST_HOME/' + n)] else '')",
    "tmp_of_the_host": "import os\nprint('ESCAPED' if os.listdir('/tmp') else '')",
    "sys": "import os\nos.listdir('/sys'); print('ESCAPED')",
    "environment": "import os\nprint('ESCAPED' if 'SECRET' in str(os.environ) else '')",
    "environment_of_others": (
        "import os\n"
        "for pid in filter(str.isdigit, os.listdir('/proc')):\n"
        "    try:\n        found = open(f'/proc/{pid}/environ').read()\n"
        "    except OSError: continue\n"
        "    if 'SECRET' in found: print('ESCAPED')"
    ),
    "processes_of_the_host": "import os\nprint('ESCAPED' if os.path.exists('/proc/PID/stat') and PID > 50 else '')",
    "other_processes_memory": "open('/proc/1/mem', 'rb').read(8); print('ESCAPED')",
    "command_lines": (
        "import os\nfor pid in filter(str.isdigit, os.listdir('/proc')):\n"
        "    if 'pytest' in open(f'/proc/{pid}/cmdline').read(): print('ESCAPED')"
    ),
    "kernel_keys": "open('/proc/kcore', 'rb').read(8); print('ESCAPED')",
    "host_name": "import socket\nprint('ESCAPED' if socket.gethostname() != 'sandbox' else '')",
    "disks": "import os\nprint('ESCAPED' if [n for n in os.listdir('/dev') if n[:2] in ('sd', 'vd', 'nv')] else '')",
    "docker_socket": "import socket\ns = socket.socket(socket.AF_UNIX); s.connect('/var/run/docker.sock'); print('ESCAPED')",
}
WRITES = {
    "usr": "open('/usr/bin/evil', 'w').write('x'); print('ESCAPED')",
    "library": "import os\nopen(os.__file__, 'a').write('#'); print('ESCAPED')",
    "interpreter": "import sys\nopen(sys.executable, 'ab').write(b'#'); print('ESCAPED')",
    "runner": "open('/runner.py', 'a').write('print(1)'); print('ESCAPED')",
    "replaces_runner": "import os\nos.unlink('/runner.py'); print('ESCAPED')",
    "program": "open('/program.py', 'w').write('print(1)'); print('ESCAPED')",
    "root": "open('/evil', 'w').write('x'); print('ESCAPED')",
    "home": "open('/home/nobody/evil', 'w').write('x'); print('ESCAPED')",
    "packages": "open('/packages/evil.py', 'w').write('x'); print('ESCAPED')",
    "chmod": "import os\nos.chmod('/runner.py', 0o777); open('/runner.py', 'a').write('#'); print('ESCAPED')",
    "sysctl": "open('/proc/sys/kernel/hostname', 'w').write('evil'); print('ESCAPED')",
    "kernel_requests": "open('/proc/sysrq-trigger', 'w').write('h'); print('ESCAPED')",
    "core_pattern": "open('/proc/sys/kernel/core_pattern', 'r+'); print('ESCAPED')",
    "remount": (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        "if libc.mount(b'none', b'/', None, 32 | 4096, None) == 0: print('ESCAPED')"
    ),
    "new_namespace": (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nif libc.unshare(0x10000000 | 0x20000) == 0: print('ESCAPED')"
    ),
    "chroot": "import os\nos.chroot('/tmp'); print('ESCAPED')",
    "becomes_root": "import os\nos.setuid(0); print('ESCAPED')",
    "device": "import os, stat\n"
    "os.mknod('/tmp/disk', 0o600 | stat.S_IFBLK, os.makedev(254, 0)); open('/tmp/disk', 'rb').read(1); print('ESCAPED')",
    "set_uid": "import os, shutil\n"
    "shutil.copy('/bin/sh', '/tmp/sh'); os.chmod('/tmp/sh', 0o4755); print('' if os.geteuid() else 'ESCAPED')",
}
NETWORK = {
    "loopback_of_the_host": "import socket\nsocket.create_connection(('127.0.0.1', PORT), 2); print('ESCAPED')",
    "internet": "import socket\nsocket.create_connection(('192.0.2.1', 80), 2); print('ESCAPED')",
    "name": "import socket\nsocket.getaddrinfo('localhost.localdomain', 80); s = socket.socket(); print('ESCAPED')",
    "udp": "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.sendto(b'x', ('127.0.0.1', PORT))",
    "raw": "import socket\ns = socket.socket(socket.AF_INET, socket.SOCK_RAW, 1); print('ESCAPED')",
    "packet": "import socket\ns = socket.socket(socket.AF_PACKET, socket.SOCK_RAW); print('ESCAPED')",
    "netlink": "import socket\ns = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW); s.bind((0, 0))",
    "abstract_socket": "import socket\ns = socket.socket(socket.AF_UNIX); s.connect('\\0canary-PORT'); print('ESCAPED')",
}
SIGNALS = {
    "kills_the_parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\nimport time; time.sleep(0.5)\nprint('lives')",
    "kills_the_first": "import os, signal\nos.kill(1, signal.SIGKILL)\nprint('lives')",
    "kills_everything": "import os, signal\nos.kill(-1, signal.SIGTERM)",
    "kills_its_group": "import os, signal\nos.killpg(0, signal.SIGKILL)",
    "kills_the_canary": "import os, signal\nos.kill(PID, signal.SIGKILL); print('ESCAPED')",
    "stops_the_parent": "import os, signal\nos.kill(os.getppid(), signal.SIGSTOP)\nprint('lives')",
    "ptrace": (
        "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nif libc.ptrace(16, 1, None, None) == 0: print('ESCAPED')"
    ),
}
# What each takes too much of, and how it is ended; "exited" where it is refused, and gives up.
GREEDY = {
    "endless_loop": ("while True: pass", {"cpu_time"}),
    "loop_that_catches": (
        "import signal\nfor n in range(1, 65):\n"
        "    try: signal.signal(n, lambda *a: None)\n    except (OSError, ValueError): pass\n"
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        {"cpu_time"},
    ),
    "threads_that_loop": (
        "import threading\ndef f():\n    while True: pass\nfor _ in range(8): threading.Thread(target=f).start()",
        {"cpu_time"},
    ),
    "regular_expression": ("import re\nre.match(r'(a+)+$', 'a' * 60 + 'b')", {"cpu_time"}),
    "big_power": ("print(len(str(7 ** (10 ** 9))))", {"cpu_time", "exited"}),
    "sleep": ("import time\ntime.sleep(1000)", {"idle"}),
    "sleeps_in_pieces": ("import time\nwhile True: time.sleep(0.01)", {"idle", "cpu_time"}),
    "waits_for_a_lock": ("import threading\nl = threading.Lock(); l.acquire(); l.acquire()", {"idle"}),
    "pauses": ("import signal\nwhile True: signal.pause()", {"idle"}),
    "closes_its_output_and_sleeps": ("import os, time\nos.close(1); os.close(2); time.sleep(1000)", {"idle"}),
    "fork_bomb": ("import os\nwhile True: os.fork()", {"exited", "processes"}),
    "patient_fork_bomb": (
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass", {"cpu_time", "processes"},
    ),
    "spawns": ("import subprocess\nwhile True: subprocess.Popen(['/bin/sleep', '100'])", {"exited", "processes"}),
    "zombies": (
        "import os\nfor _ in range(100000):\n    if os.fork() == 0: os._exit(0)", {"exited", "processes", "cpu_time"},
    ),
    "daemon": (
        "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(1000)\n    os._exit(0)",
        {"exited"},
    ),
    "thread_bomb": (
        "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(1000,)).start()",
        {"exited", "processes", "idle"},
    ),
    "memory": ("x = bytearray(64 * 1024**3)", {"exited"}),
    "memory_in_pieces": ("x = []\nwhile True: x.append(bytearray(1 << 24))", {"exited", "cpu_time", "memory"}),
    "memory_mapped": ("import mmap\nx = []\nwhile True: x.append(mmap.mmap(-1, 1 << 26))", {"exited", "cpu_time"}),
    "memory_files": (
        "import os\nx = []\nfor n in range(1000):\n    f = os.memfd_create(str(n)); os.write(f, b'x' * (1 << 20)); x.append(f)",
        {"exited"},
    ),
    "disk": ("f = open('/tmp/x', 'wb')\nwhile True: f.write(b'x' * (1 << 20))", {"exited"}),
    "disk_in_pieces": (
        "n = 0\nwhile True:\n    open(f'/tmp/{n}', 'wb').write(b'x' * (1 << 20)); n += 1", {"exited"},
    ),
    "shared_memory": ("n = 0\nwhile True:\n    open(f'/dev/shm/{n}', 'wb').write(b'x' * 65536); n += 1", {"exited"}),
    "sparse_file": ("f = open('/tmp/x', 'wb'); f.truncate(1 << 50)", {"exited"}),
    "many_files": ("n = 0\nwhile True:\n    open(f'/tmp/{n}', 'w'); n += 1", {"files", "cpu_time"}),
    "deep_folders": ("import os\nwhile True:\n    os.mkdir('d'); os.chdir('d')", {"files", "cpu_time", "exited"}),
    "descriptors": ("import os\nx = []\nwhile True: x.append(os.open('/dev/null', 0))", {"exited"}),
    "pipes": ("import os\nx = []\nwhile True: x.append(os.pipe())", {"exited"}),
    "long_output": ("while True: print('x' * 1000)", {"output"}),
    "long_errors": ("import sys\nwhile True: sys.stderr.write('x' * 1000)", {"cpu_time"}),
    "long_line": ("print('x' * (1 << 26))", {"output"}),
    "deep_recursion": ("import sys\nsys.setrecursionlimit(10**9)\ndef f(): f()\nf()", {"exited", "cpu_time", "memory"}),
    "crash": ("import ctypes\nctypes.string_at(0)", {"exited"}),
}  # fmt: skip

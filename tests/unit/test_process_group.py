"""A process that ends at once leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dasd_megatron.utils.child_process import start_of_process
from tests.conftest import ROOT

# A worker that ignores its parent's end and a polite signal, and has a child of its own.
WORKER = (
    "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "child = subprocess.Popen(['sleep', '600']); print(child.pid, flush=True); time.sleep(600)"
)
ENGINE = (
    "import os, subprocess, sys; from dasd_megatron.utils.process_group import exit_at_once\n"
    f"worker = subprocess.Popen([sys.executable, '-c', {WORKER!r}], stdout=subprocess.PIPE, text=True)\n"
    "print(worker.pid, worker.stdout.readline(), flush=True)\n"
    "exit_at_once(3)"
)


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no shared memory here")
def test_shared_memory_does_not_stay() -> None:
    """Python's own helper removes it, once nobody is left."""
    code = (
        "from multiprocessing.shared_memory import SharedMemory; from dasd_megatron.utils.process_group import exit_at_once\n"
        "memory = SharedMemory(create=True, size=1000); print(memory.name, flush=True); exit_at_once()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    memory, deadline = Path("/dev/shm") / done.stdout.strip(), time.monotonic() + 10
    while memory.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not memory.exists()


def test_workers_are_gone_when_it_is() -> None:
    done = subprocess.run([sys.executable, "-c", ENGINE], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 3, done.stderr
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    assert [start_of_process(pid) for pid in pids] == [None, None]

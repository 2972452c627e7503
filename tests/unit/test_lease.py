"""Leases exclude, end with their holder, and need no locks that reach other machines."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dasd_megatron.utils import lease as leases
from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.lease import hold, holder, try_lease

# A process that seems to be on a machine of its own, on a file system whose locks don't reach others; its first argument is
# the machine's name.
OTHER_MACHINE = """
import fcntl, sys, time
from pathlib import Path
from dasd_megatron.utils import lease
fcntl.flock = lambda *_: None
lease._machine = lambda: sys.argv[1]
lease.BEAT, lease.DEAD = 0.1, 1.0
"""


def other_machine(program: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", OTHER_MACHINE + program, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Holders elsewhere count as dead after a second."""
    monkeypatch.setattr(leases, "DEAD", 1.0)


def test_excludes_and_is_given_back(tmp_path: Path) -> None:
    with hold(tmp_path / "l", "busy"):
        assert try_lease(tmp_path / "l") is None
        refused = pytest.raises(UserError, match=f"busy .*held by process {os.getpid()} on ")
        with refused, hold(tmp_path / "l", "busy", patience=0.2):
            pass
    assert not list(tmp_path.iterdir())
    held = try_lease(tmp_path / "l")
    assert held is not None
    assert held.is_held()
    held.close()
    assert not list(tmp_path.iterdir())


def test_names_that_begin_alike_are_different_leases(tmp_path: Path) -> None:
    with hold(tmp_path / "l", "busy"), hold(tmp_path / "l.x", "busy", 0), hold(tmp_path / "ll", "busy", 0):
        pass


HOLD = """
held = lease.try_lease(Path(sys.argv[2]))
print("held" if held else "free", flush=True)
time.sleep(60)
"""


def test_ends_at_once_with_its_holder_on_this_machine(tmp_path: Path) -> None:
    program = "import sys, time\nfrom pathlib import Path\nfrom dasd_megatron.utils import lease\n" + HOLD
    process = subprocess.Popen(
        [sys.executable, "-c", program, "", str(tmp_path / "l")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    assert try_lease(tmp_path / "l") is None
    assert holder(tmp_path / "l").startswith(f"process {process.pid} on ")
    process.kill()
    process.wait()
    held = try_lease(tmp_path / "l")
    assert held is not None
    assert [path.name for path in tmp_path.iterdir()] == ["l.2"]  # the first's file is gone
    held.close()


def test_a_holder_elsewhere_keeps_it_while_it_beats(tmp_path: Path, impatient: None) -> None:
    process = other_machine(HOLD, "elsewhere", str(tmp_path / "l"))
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    for _ in range(25):
        assert try_lease(tmp_path / "l") is None
        time.sleep(0.1)
    process.kill()
    process.wait()
    with hold(tmp_path / "l", "busy", patience=5):
        pass


def test_a_holder_that_stood_still_learns_that_it_lost(tmp_path: Path, impatient: None) -> None:
    program = """
with lease.hold(Path(sys.argv[2]), "busy"):
    print("held", flush=True)
    time.sleep(60)
"""
    process = other_machine(program, "elsewhere", str(tmp_path / "l"))
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == "held\n"
    process.send_signal(19)  # SIGSTOP
    with hold(tmp_path / "l", "busy", patience=5):
        process.send_signal(18)  # SIGCONT
        assert process.wait(10) == 1
        message = process.stderr.read()
        assert "this process stood still" in message
        assert f"process {os.getpid()} on " in message
        assert "Traceback" not in message


COUNT = """
# Each adds one to a number, a hundred times, with time to be disturbed between reading and writing.
name, number = Path(sys.argv[2]), Path(sys.argv[3])
done = 0
while done < 100:
    held = lease.try_lease(name)
    if held is None:
        time.sleep(0.001)
        continue
    with held:
        value = int(number.read_text())
        time.sleep(0.001)
        number.write_text(str(value + 1))
    done += 1
"""


def test_many_machines_never_hold_it_together(tmp_path: Path) -> None:
    number = tmp_path / "number"
    number.write_text("0")
    arguments = (str(tmp_path / "leases" / "l"), str(number))
    processes = [other_machine(COUNT, f"machine {index}", *arguments) for index in range(4)]
    assert [process.wait(120) for process in processes] == [0] * 4, [p.communicate()[1] for p in processes]
    assert number.read_text() == "400"


TAKE_OVER = """
# All wait for a dead holder; how many have it at the same moment?
name, inside = Path(sys.argv[2]), Path(sys.argv[3])
while (held := lease.try_lease(name)) is None:
    time.sleep(0.001)
with held:
    (inside / sys.argv[1]).touch()
    time.sleep(0.2)
    print(len(list(inside.iterdir())))
    (inside / sys.argv[1]).unlink()
"""


def test_one_alone_takes_over(tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    name = tmp_path / "leases" / "l"
    dead = other_machine(HOLD, "dead", str(name))
    assert dead.stdout is not None
    assert dead.stdout.readline() == "held\n"
    waiting = [other_machine(TAKE_OVER, f"machine {index}", str(name), str(inside)) for index in range(5)]
    dead.kill()
    dead.wait()
    assert [process.communicate(timeout=60)[0] for process in waiting] == ["1\n"] * 5


def test_a_folder_that_cant_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="a file is in the way"):
        try_lease(tmp_path / "file" / "l")


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="the disk is full"):
        try_lease(tmp_path / "l")
    assert not list(tmp_path.iterdir())


def test_a_file_system_that_does_not_answer_for_a_moment_takes_no_lease(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = try_lease(tmp_path / "l")
    assert held is not None

    def silent(*_: object) -> str:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_text", silent)
        assert held.is_held()
        patched.setattr(Path, "exists", silent)
        assert held.is_held()
    (tmp_path / "l.1").write_text("[]")  # not what a lease writes
    assert not held.is_held()
    assert holder(tmp_path / "l") == "another process"

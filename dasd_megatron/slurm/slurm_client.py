"""Slurm's view of jobs: which are queued or running, and how the others ended."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from dasd_megatron.utils.errors import UserError


class Result(Protocol):
    """Of a command: what NeMo-Run's tunnels return."""

    stdout: str
    stderr: str
    return_code: int


# Runs a shell command where Slurm is.
Run = Callable[[str], Result]

# States, as sacct has them, in which a job will not run again by itself.
SUCCEEDED = "COMPLETED"
ENDED = (
    SUCCEEDED,
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "BOOT_FAIL",
    "DEADLINE",
)


@dataclass(frozen=True)
class SlurmJob:
    """One job of a step.

    Attributes:
        name: `PREFIX.STEP`, see `job_prefix` in experiment.py.
        state: Slurm's word for it.
        exit_code: what the script exited with; 0 while it runs.
        nodes: Slurm's list of them.
        reason: why it waits, or was ended.
    """

    id: str
    name: str
    user: str
    state: str
    exit_code: int = 0
    nodes: str = ""
    reason: str = ""

    @property
    def step(self) -> str:
        """The step it works on."""
        return self.name.rpartition(".")[2]

    @property
    def ended(self) -> bool:
        """Whether it will not run again by itself."""
        return self.state in ENDED


class ControllerAway(UserError):
    """Slurm's controller or its accounting doesn't answer at present."""


class SlurmClient:
    """Asks Slurm through `run`."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def active(self, names: Sequence[str]) -> list[SlurmJob]:
        """Jobs of these names that are queued or running, whosoever they are. Raises ControllerAway."""
        out = self._ask(f"squeue --noheader --name={shlex.quote(','.join(names))} --format='%i|%j|%u|%T|%N|%r'")
        return [SlurmJob(i, name, user, state, 0, nodes, reason) for i, name, user, state, nodes, reason in _rows(out)]

    def begun_since(self, names: Sequence[str], when: str) -> dict[str, str]:
        """Ids, by step, of the latest jobs of these names that began after `when` (YYYY-MM-DD HH:MM:SS)."""
        since = when.replace(" ", "T")
        out = self._ask(
            f"sacct --noheader --allocations --parsable2 --name={shlex.quote(','.join(names))} --starttime={since} "
            "--format=JobID,JobName%100"
        )
        return {name.rpartition(".")[2]: id for id, name in _rows(out)}

    def jobs(self, ids: Sequence[str]) -> list[SlurmJob]:
        """These jobs as the accounting has them; one that was requeued, as it is now. Raises ControllerAway."""
        out = self._ask(
            f"sacct --noheader --allocations --parsable2 --jobs={','.join(ids)} "
            "--format=JobID,JobName%100,User,State,ExitCode,NodeList,Reason"
        )
        found = []
        for i, name, user, state, code, nodes, reason in _rows(out):
            state, _, who = state.partition(" by ")  # CANCELLED by 1000
            found.append(
                SlurmJob(i, name, user, state, int(code.partition(":")[0]), nodes, f"by user {who}" if who else reason)
            )
        return found

    def cancel(self, ids: Sequence[str]) -> None:
        """Ends jobs; those that have ended already are left alone."""
        if ids:
            self._run(f"scancel {' '.join(ids)}")

    def check(self, flags: Sequence[str], where: str) -> None:
        """Asks sbatch whether it would take a job with these flags. Raises UserError with its reason where it wouldn't."""
        result = self._run(f"sbatch --test-only {' '.join(map(shlex.quote, flags))} --wrap=true")
        if result.return_code:
            reason = "; ".join(
                line.removeprefix("sbatch: error: ").removeprefix("allocation failure: ")
                for line in result.stderr.strip().splitlines()
            )
            raise UserError(f"{where}: Slurm would refuse the job: {reason}")

    def _ask(self, command: str) -> str:
        result = self._run(command)
        if result.return_code:
            raise ControllerAway(f"Slurm doesn't answer: {result.stderr.strip()}")
        return result.stdout


def _rows(text: str) -> list[list[str]]:
    return [line.split("|") for line in text.splitlines() if line.strip()]

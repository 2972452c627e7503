"""What the launcher makes of Slurm's answers."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from dasd_megatron.slurm.monitor import explanation
from dasd_megatron.slurm.slurm_client import ControllerAway, SlurmClient, SlurmJob
from dasd_megatron.utils.errors import UserError


@dataclass
class Answer:
    stdout: str = ""
    stderr: str = ""
    return_code: int = 0


@dataclass
class Login:
    """Answers of a login node, one after another, and what was asked."""

    answers: list[Answer]
    asked: list[str] = field(default_factory=list)

    def __call__(self, command: str) -> Answer:
        self.asked.append(command)
        return self.answers.pop(0)


def test_accounting_lines() -> None:
    out = (
        "7|toy-1.sample|me|COMPLETED|0:0|node1|None\n"
        "8|toy-1.train|me|CANCELLED by 1000|0:15|node[1-2]|None\n"
        "9|toy-1.export|me|CANCELLED by 0|0:0|None assigned|Dependency\n"
        "10|allocation||PENDING|0:0||None\n"
    )
    jobs = SlurmClient(Login([Answer(out)])).jobs(["7", "8", "9", "10"])
    assert [job.step for job in jobs[:3]] == ["sample", "train", "export"]
    assert [job.ended for job in jobs] == [True, True, True, False]
    assert explanation(jobs[1], "training") == "cancelled by user 1000"


@pytest.mark.parametrize(
    ("state", "exit_code", "message"),
    [
        ("TIMEOUT", 0, "raise launch.grace_period_seconds, or launch.training.time"),
        ("OUT_OF_MEMORY", 0, "out of memory: raise launch.training.memory_per_node"),
        ("NODE_FAIL", 0, "lost its node (node1), and Slurm did not queue it again"),
        ("PREEMPTED", 0, "pre-empted, and not queued again"),
        ("FAILED", 75, "stopped to be queued again, which Slurm refused"),
        ("FAILED", 3, "too many attempts in a row got no further"),
        ("FAILED", 2, "failed, for the reason in its log"),
        ("FAILED", 1, "its node could not begin it"),
    ],
)
def test_every_end_has_its_explanation(state: str, exit_code: int, message: str) -> None:
    job = SlurmJob("7", "toy-1.train_low_temperature", "me", state, exit_code, "node1")
    assert job.ended
    assert message in explanation(job, "training")


def test_a_controller_that_is_away_is_no_end() -> None:
    away = Answer(stderr="slurm_load_jobs error: Unable to contact slurm controller", return_code=1)
    with pytest.raises(ControllerAway, match="Unable to contact"):
        SlurmClient(Login([away])).active(["a"])


def test_what_sbatch_would_refuse() -> None:
    refused = Answer(
        stderr="sbatch: error: invalid partition specified: x\nallocation failure: Invalid partition name specified\n",
        return_code=1,
    )
    login = Login([refused, Answer()])
    queue = SlurmClient(login)
    with pytest.raises(UserError) as raised:
        queue.check(["--partition=x y"], "train")
    assert str(raised.value) == (
        "train: Slurm would refuse the job: invalid partition specified: x; Invalid partition name specified"
    )
    assert login.asked[0] == "sbatch --test-only '--partition=x y' --wrap=true"
    queue.check([], "train")


def test_nothing_is_cancelled_without_ids() -> None:
    login = Login([])
    SlurmClient(login).cancel([])
    assert not login.asked

"""What a night on a cluster brings, one by one: each ends in the result of an undisturbed run, or in one clear reason.

A stage and the export after it are submitted, something happens while it trains, and the launcher is watched to its end.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from dasd_megatron.artifacts.artifact import COMPLETE
from dasd_megatron.config.load import load_recipe
from dasd_megatron.pipeline.graph import build_steps
from dasd_megatron.slurm.experiment import job_prefix
from dasd_megatron.steps.step import Step
from dasd_megatron.utils.stop_signals import SIGNALS
from tests.conftest import ROOT
from tests.helpers.slurm_cluster import URGENT
from tests.helpers.small_run import RECIPE, SMALL, finish
from tests.helpers.training_runs import RESULTS
from tests.slurm.conftest import Site

pytestmark = pytest.mark.full

TRAIN, EXPORT = "train_low_temperature", "export_low_temperature"
ONLY = ["--only", TRAIN, "--only", EXPORT]
# Long enough that something can happen on the way, with saves on the way.
LONGER = ["training.steps=60", "training.save_every=10", "launch.training.nodes=2"]
PATIENCE = 120.0


@dataclass
class StageRun:
    """A stage whose inputs are done, on its way through the cluster."""

    site: Site
    folder: Path
    overrides: list[str]
    process: subprocess.Popen[str] | None = None
    said: str = ""

    @property
    def steps(self) -> dict[str, Step]:
        return build_steps(load_recipe(RECIPE, self.arguments[1:]))

    @property
    def arguments(self) -> list[str]:
        return [str(RECIPE), *SMALL, f"run_dir={self.folder}", *self.overrides]

    @property
    def stage(self) -> Path:
        return self.steps[TRAIN].folder

    def submit(self) -> None:
        self.process = self.site.launch(*self.arguments, *ONLY)

    def losses(self) -> list[dict[str, Any]]:
        path = self.stage / "metrics.jsonl"
        if not path.is_file():
            return []
        lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
        return [{key: line[key] for key in RESULTS} for line in lines]

    def until(self, condition: Callable[[], bool], what: str) -> None:
        assert self.process is not None
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline, what + "\n" + self.site.cluster.run("squeue")
            time.sleep(0.1)

    def until_it_trains(self, checkpoint: bool = True) -> str:
        """Until the stage has saved once (and trains on); its job's id."""
        stage = self.stage
        self.until(lambda: any(stage.glob("step-*")) if checkpoint else bool(self.losses()), "training")
        return self.job(TRAIN)

    def job(self, step: str) -> str:
        """The id of the step's job."""
        name = job_prefix(load_recipe(RECIPE, self.arguments[1:])) + step
        return self.site.cluster.run("squeue", "-h", f"--name={name}", "-o", "%i").splitlines()[0]

    def accounting(self, step: str, what: str) -> list[str]:
        """What sacct has to say of the step's jobs, each start of one on a line of its own."""
        name = job_prefix(load_recipe(RECIPE, self.arguments[1:])) + step
        lines = self.site.cluster.run(
            "sacct", "-n", "-X", "-P", "--duplicates", f"--name={name}", "-o", what
        ).splitlines()
        return [line for line in lines if line]

    def end(self) -> tuple[int, str, str]:
        assert self.process is not None
        self.said, errors = self.process.communicate(timeout=300)
        return self.process.returncode, self.said, errors


def ranks_of(job: str, restart: str | None = None) -> list[psutil.Process]:
    """The ranks of a job; only of its n-th restart, where that is given."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            environment = process.environ()
            meant = restart is None or environment.get("SLURM_RESTART_COUNT", "") == restart
            if environment.get("SLURM_JOB_ID") == job and "RANK" in environment and meant:
                found.append(process)
    return found


def freeze_until_told(run: StageRun) -> None:
    """Freezes the ranks until the first is told to save, as if a step took that long; then waits for the job's end."""
    ranks = ranks_of(run.until_it_trains())
    assert ranks
    for rank in ranks:
        rank.suspend()
    try:
        run.until(lambda: any(map(is_told, ranks)), "signal")
    finally:
        for rank in ranks:
            with contextlib.suppress(psutil.NoSuchProcess):
                rank.resume()
    run.until(lambda: not any(rank.is_running() for rank in ranks), "end of the first job")
    assert 0 < len(run.losses()) < 60


def is_told(rank: psutil.Process) -> bool:
    """Whether a suspended process will see a signal to save once it is resumed, or has ended: Slurm's signals resume it."""
    try:
        status = Path(f"/proc/{rank.pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return True
    (line,) = [line for line in status.splitlines() if line.startswith("ShdPnd")]
    return any(int(line.split()[1], 16) >> number - 1 & 1 for number in SIGNALS)


@pytest.fixture(scope="module")
def undisturbed(calm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of the longer stage on this machine."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    shutil.copytree(calm, folder, symlinks=True)
    code, _, errors = finish(str(RECIPE), *SMALL, f"run_dir={folder}", *LONGER[:2], *ONLY)
    assert code == 0, errors[-3000:]
    return folder


@pytest.fixture
def run(site: Site, calm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StageRun:
    monkeypatch.chdir(ROOT)
    made = StageRun(site, tmp_path / "run", list(LONGER))
    shutil.copytree(calm, made.folder, symlinks=True)
    return made


def check_done(run: StageRun, undisturbed: Path, starts: int | None = None) -> None:
    """The launcher says so, the stage's numbers are the undisturbed one's, and the export waited for the stage's end.

    `starts` is how often its job began, where that doesn't depend on how busy the machine is.
    """
    code, out, errors = run.end()
    assert code == 0, out[-3000:] + errors[-3000:]
    expected = StageRun(run.site, undisturbed, LONGER)
    assert len(run.losses()) == 60
    for line, other in zip(run.losses(), expected.losses(), strict=True):
        assert line == pytest.approx(other, rel=1e-5), out
    assert not list(run.stage.glob("step-*"))
    exported = run.steps[EXPORT].folder / COMPLETE
    assert exported.stat().st_mtime > (run.stage / COMPLETE).stat().st_mtime
    check_next_stage_waited(run)
    if starts is not None:
        assert len(run.accounting(TRAIN, "JobID")) == starts


def check_next_stage_waited(run: StageRun) -> None:
    """The export's one job began after the stage was complete."""
    (start,) = run.accounting(EXPORT, "Start")
    began = time.mktime(time.strptime(start, "%Y-%m-%dT%H:%M:%S"))
    assert began >= int((run.stage / COMPLETE).stat().st_mtime)


def test_a_node_that_is_set_down(run: StageRun, undisturbed: Path) -> None:
    """Until its slurmd registers again."""
    run.submit()
    run.until_it_trains()
    run.site.cluster.run("scontrol", "update", "nodename=node2", "state=down", "reason=test")
    check_done(run, undisturbed, starts=2)


def test_a_killed_slurmd(run: StageRun, undisturbed: Path) -> None:
    """Its ranks run on for a while, without anyone who could end them."""
    run.submit()
    run.until_it_trains()
    run.site.cluster.kill_daemon("node2")
    run.until(lambda: run.site.cluster.states()["node2"].startswith("down"), "down node")
    run.site.cluster.start_node("node2")
    check_done(run, undisturbed)


def test_a_lost_node(run: StageRun, undisturbed: Path) -> None:
    """Its ranks are gone at once, before Slurm knows: the others crash, which must not count as the stage's failure."""
    run.submit()
    run.until_it_trains()
    run.site.cluster.kill_node("node2")
    time.sleep(2)
    run.site.cluster.start_node("node2")
    check_done(run, undisturbed)


def test_a_time_limit_shorter_than_the_stage(run: StageRun, undisturbed: Path) -> None:
    """On a node so slow that the first job can't end it."""
    run.overrides += ["launch.training.time='00:01:00'", "launch.grace_period_seconds=20"]
    run.submit()
    freeze_until_told(run)
    check_done(run, undisturbed)
    assert len(run.accounting(TRAIN, "JobID")) >= 2
    assert "PENDING again: it resumes where it was stopped" in run.said


def test_a_stage_whose_saves_take_longer_than_its_grace_period(run: StageRun, undisturbed: Path) -> None:
    """What its log says of a save, known only since it runs, makes it stop before Slurm's signal."""
    run.overrides += ["launch.training.time='00:02:00'", "launch.grace_period_seconds=5"]
    run.submit()
    run.until_it_trains()
    with (run.stage / "saves.jsonl").open("a") as file:
        file.write('{"step": 10, "seconds": 50.0}\n')
    freeze_until_told(run)
    # With the step that took long, too, the next jobs would have no time to train.
    (run.stage / "saves.jsonl").write_text("")
    check_done(run, undisturbed)
    ran = [int(seconds) for seconds in run.accounting(TRAIN, "ElapsedRaw")]
    assert len(ran) >= 2
    assert max(ran) < 110, ran  # the limit less Slurm's lead


def test_a_job_that_someone_requeues(run: StageRun, undisturbed: Path) -> None:
    run.submit()
    job = run.until_it_trains()
    run.site.cluster.run("scontrol", "requeue", job)
    check_done(run, undisturbed, starts=2)


def test_a_job_that_is_pre_empted(run: StageRun, undisturbed: Path) -> None:
    run.submit()
    run.until_it_trains()
    urgent = ["sbatch", f"--partition={URGENT}", "--nodes=2", "--exclusive", "--wrap=sleep 3", "--output=/dev/null"]
    run.site.cluster.run(*urgent)
    check_done(run, undisturbed, starts=2)


def test_a_cancelled_step(run: StageRun, undisturbed: Path) -> None:
    run.submit()
    job = run.until_it_trains()
    run.site.cluster.run("scancel", job)
    code, out, errors = run.end()
    assert code == 2
    assert f"{TRAIN}: cancelled by user 0" in out
    assert f"error: {TRAIN} did not succeed (see above); cancelled with it: {EXPORT}" in errors
    check_next_step_never_began(run)
    done = len(run.losses())
    assert done < 60
    run.submit()
    check_done(run, undisturbed)


def check_next_step_never_began(run: StageRun) -> None:
    assert not [start for start in run.accounting(EXPORT, "Start") if start != "None"]
    assert not run.steps[EXPORT].folder.exists()


def test_a_controller_that_is_started_again(run: StageRun, undisturbed: Path) -> None:
    run.submit()
    run.until_it_trains()
    run.site.cluster.kill_controller()
    time.sleep(8)
    run.site.cluster.start_controller()
    check_done(run, undisturbed, starts=1)


def test_a_step_that_fails(run: StageRun) -> None:
    """A learning rate that drives the loss to infinity: a failure of its own, which no second attempt fixes."""
    run.overrides.append("training.learning_rate=1e30")
    run.submit()
    code, out, errors = run.end()
    assert code == 2
    assert f"{TRAIN}: failed, for the reason in its log:" in out
    assert "Lower training.learning_rate" in out
    assert "Traceback" not in out + errors
    check_next_step_never_began(run)
    assert len(run.accounting(TRAIN, "JobID")) == 1


def test_a_step_that_keeps_crashing(run: StageRun) -> None:
    """Attempts that get no further are counted, and end: here two whose ranks are killed as soon as they are there."""
    run.overrides += ["launch.retries=1"]
    run.submit()
    for attempt in range(2):
        run.until(lambda: any(run.site.cluster.run("squeue", "-h", "-t", "running").splitlines()), "job")
        job = run.job(TRAIN)
        run.until(lambda job=job, attempt=attempt: bool(ranks_of(job, str(attempt or ""))), "ranks")
        for rank in ranks_of(job):
            rank.kill()
    code, out, _ = run.end()
    assert code == 2
    assert "train_low_temperature: too many attempts in a row got no further (launch.retries)" in out
    assert len(run.accounting(TRAIN, "JobID")) == 2
    check_next_step_never_began(run)


def test_a_failure_is_named_before_what_it_does_to_others(run: StageRun) -> None:
    """Rank 0 can't write its log; the other rank only sees it go."""
    (run.stage / "metrics.jsonl").mkdir(parents=True)
    run.submit()
    code, out, _ = run.end()
    assert code == 2
    assert f"error: {run.stage / 'metrics.jsonl'}: can't be written" in out
    check_next_step_never_began(run)

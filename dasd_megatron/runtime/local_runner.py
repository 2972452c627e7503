"""Runs the steps of a recipe on this machine, one after another, each in a process of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import IO

from dasd_megatron.config.recipe import Recipe
from dasd_megatron.runtime.publish import publish
from dasd_megatron.runtime.run_step import RUN_STEP
from dasd_megatron.runtime.submission_record import SUBMISSION, Submission
from dasd_megatron.steps.step import Ranks, Replicas, Step
from dasd_megatron.utils.child_process import child_options, forward_signals
from dasd_megatron.utils.errors import Stopped, UserError
from dasd_megatron.utils.lease import hold
from dasd_megatron.utils.stop_signals import SIGNALS

TORCHRUN = "dasd_megatron.runtime.torchrun"


def run_all(recipe: Recipe, path: Path, overrides: Sequence[str], steps: Mapping[str, Step]) -> None:
    """Runs every step that isn't done, then publishes the report and the final model in the run folder."""
    busy = f"{recipe.run_dir}: another process is running this recipe; wait for it, or choose another run_dir"
    with hold(recipe.run_dir / ".lock", busy):
        # Artifacts that runs share may be those of a study.
        for folder in dict.fromkeys((recipe.run_dir, recipe.folder_of_artifacts.parent)):
            check_not_on_a_cluster(folder)
        for number, step in enumerate(steps.values(), 1):
            if step.done:
                print(f"[{number}/{len(steps)}] {step.name}: done before", flush=True)
                continue
            print(f"[{number}/{len(steps)}] {step.name}", flush=True)
            start = time.monotonic()
            run_one(step, path, overrides)
            print(f"[{number}/{len(steps)}] {step.name}: {time.monotonic() - start:.1f} s", flush=True)
        publish(recipe, steps)


def check_not_on_a_cluster(folder: Path) -> None:
    """Raises UserError where Slurm jobs of this folder are queued or running, as far as that can be seen from here."""
    path = folder / SUBMISSION
    if not path.is_file() or shutil.which("squeue") is None:
        return
    submission = Submission.read(path)
    if submission.jobs:
        command = ["squeue", "--noheader", "--format=%i", f"--jobs={','.join(submission.jobs.values())}"]
        active = subprocess.run(command, capture_output=True, text=True).stdout.split()
        if active:
            raise UserError(
                f"{folder}: this run is submitted ({submission.id} by {submission.user}); {len(active)} of its jobs are "
                f"queued or running. Follow them with --executor slurm --watch, or cancel them with: scancel {' '.join(active)}"
            )


def run_one(step: Step, path: Path, overrides: Sequence[str]) -> None:
    """Runs one step in its own process, or under torchrun with the ranks it needs.

    Raises UserError if it fails, and Stopped if a signal asked for it.
    """
    process: subprocess.Popen[bytes] | None = None
    # Training saves when it is told to stop; other steps lose nothing when they end with this process.
    passing: contextlib.AbstractContextManager[set[int]] = contextlib.nullcontext(set())
    if isinstance(step.processes, Ranks):
        passing = forward_signals(lambda: [process.pid] if process else [])
    with passing as signals:
        process = start(step, path, overrides)
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.wait()  # it got the same signal
            raise
    if code == Stopped.EXIT_CODE:
        raise Stopped
    # A process that isn't listening yet ends by the signal, whoever sent it, and has nothing to lose.
    if (code == 0 and signals) or (isinstance(step.processes, Ranks) and -code in SIGNALS):
        raise Stopped(f"{step.name}: stopped; run the same command to resume")
    if code:
        raise UserError(
            f"{step.name} failed (exit code {code}, its message is above); run the same command again to resume from here"
        )


def start(
    step: Step,
    path: Path,
    overrides: Sequence[str],
    log: IO[bytes] | None = None,
    cores: Collection[int] = (),
    gpus: Sequence[str] | None = None,
) -> subprocess.Popen[bytes]:
    """Starts a step, as a process that ends with this one.

    Args:
        log: takes what it prints.
        cores, gpus: the only ones that it may use; by default all.
    """
    command = [*_launcher(step.processes), RUN_STEP, str(path), step.name, *overrides]
    in_child, environment = child_options()
    environment["OMP_NUM_THREADS"] = str(step.config.threads)
    if gpus is not None:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(gpus)

    def prepare() -> None:
        in_child()
        if cores and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cores)

    return subprocess.Popen(command, env=environment, preexec_fn=prepare, stdout=log, stderr=log)


def _launcher(processes: Ranks | Replicas | None) -> list[str]:
    if not isinstance(processes, Ranks) or processes.world_size == 1:
        return [sys.executable, "-m"]
    return [sys.executable, "-m", TORCHRUN, "--standalone", "--nproc-per-node", str(processes.world_size), "-m"]

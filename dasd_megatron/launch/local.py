"""Runs the steps of a recipe on this machine, one after another, each in a process of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import IO

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.artifacts.files import disk_error, lock, write_atomically
from dasd_megatron.errors import Stopped, UserError
from dasd_megatron.launch.process import child_options, passed_on
from dasd_megatron.launch.submission import SUBMISSION, Submission
from dasd_megatron.recipe.schema import Parallel, Recipe
from dasd_megatron.recipe.steps import Step

RUN_STEP, RANKS = "dasd_megatron.launch.run_step", "dasd_megatron.launch.ranks"


def run_all(recipe: Recipe, path: Path, overrides: Sequence[str], steps: Mapping[str, Step]) -> None:
    """Runs every step that isn't done, then publishes the report and the final model in the run folder."""
    busy = f"{recipe.run_dir}: another process is running this recipe; wait for it, or choose another run_dir"
    with lock(recipe.run_dir / ".lock", busy):
        _check_not_on_a_cluster(recipe)
        for number, step in enumerate(steps.values(), 1):
            if step.done:
                print(f"[{number}/{len(steps)}] {step.name}: done before", flush=True)
                continue
            print(f"[{number}/{len(steps)}] {step.name}", flush=True)
            start = time.monotonic()
            run_one(step, path, overrides)
            print(f"[{number}/{len(steps)}] {step.name}: {time.monotonic() - start:.1f} s", flush=True)
        publish(recipe, steps)


def _check_not_on_a_cluster(recipe: Recipe) -> None:
    """Raises UserError where Slurm jobs of this run folder are queued or running, as far as that can be seen from here."""
    path = recipe.run_dir / SUBMISSION
    if not path.is_file() or shutil.which("squeue") is None:
        return
    submission = Submission.read(path)
    if submission.jobs:
        command = ["squeue", "--noheader", "--format=%i", f"--jobs={','.join(submission.jobs.values())}"]
        active = subprocess.run(command, capture_output=True, text=True).stdout.split()
        if active:
            raise UserError(
                f"{recipe.run_dir}: this run is submitted ({submission.id} by {submission.user}); {len(active)} of its jobs are "
                f"queued or running. Follow them with --executor slurm --watch, or cancel them with: scancel {' '.join(active)}"
            )


def run_one(step: Step, path: Path, overrides: Sequence[str]) -> None:
    """Runs one step in its own process, or under torchrun with the ranks it needs.

    Raises UserError if it fails, and Stopped if a signal asked for it.
    """
    command = [*_launcher(step), RUN_STEP, str(path), step.name, *overrides]
    in_child, environment = child_options()
    environment["OMP_NUM_THREADS"] = str(step.execution["threads"])
    process: subprocess.Popen[bytes] | None = None
    # Training saves when it is told to stop; other steps lose nothing when they end with this process.
    passing: contextlib.AbstractContextManager[set[int]] = contextlib.nullcontext(set())
    if step.kind == "train":
        passing = passed_on(lambda: [process.pid] if process else [])
    with passing as signals:
        process = subprocess.Popen(command, env=environment, preexec_fn=in_child)
        try:
            code = process.wait()
        except KeyboardInterrupt:
            process.wait()  # it got the same signal
            raise
    if code == Stopped.EXIT_CODE:
        raise Stopped
    if (code == 0 and signals) or -code in signals:
        raise Stopped(f"{step.name}: stopped; run the same command to go on")
    if code:
        raise UserError(
            f"{step.name} failed (exit code {code}, its message is above); run the same command again to go on from here"
        )


def _write(file: IO[bytes], content: bytes) -> None:
    file.write(content)


def _launcher(step: Step) -> list[str]:
    ranks = Parallel(**step.execution["parallel"]).world_size if "parallel" in step.execution else 1
    if ranks == 1:
        return [sys.executable, "-m"]
    return [sys.executable, "-m", RANKS, "--standalone", "--nproc-per-node", str(ranks), "-m"]


def publish(recipe: Recipe, steps: Mapping[str, Step]) -> None:
    """`report.html`, `summary.json` and the link `final` to the last stage's model, in the run folder."""
    report = Artifact(steps["report"].folder)
    for name in ("report.html", "summary.json"):
        content = report.file(name).read_bytes()
        write_atomically(recipe.run_dir / name, partial(_write, content=content))
    final = steps[f"export_{recipe.stages[-1].name}"].folder
    link, aside = recipe.run_dir / "final", recipe.run_dir / ".final.tmp"
    try:
        aside.unlink(missing_ok=True)
        aside.symlink_to(os.path.relpath(final, recipe.run_dir))
        aside.rename(link)
    except OSError as error:
        raise disk_error(link, error) from error

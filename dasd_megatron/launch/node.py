"""One node's part of a step's job, as srun starts it: torchrun's ranks, engine replicas, or the step itself.

python -m dasd_megatron.launch.node RECIPE STEP --submission ID --processes N --verdict FILE

The first node leads: it holds the step's lock, and its verdict tells the job's script (launch/job_script.py) how to end.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Never

from dasd_megatron.artifacts.files import write_atomically, write_json
from dasd_megatron.errors import Stopped, UserError
from dasd_megatron.launch.local import RANKS, RUN_STEP, publish
from dasd_megatron.launch.process import child_options, passed_on
from dasd_megatron.launch.replicas import start_replicas
from dasd_megatron.launch.run_step import find_step
from dasd_megatron.launch.submission import SUBMISSION, Submission
from dasd_megatron.recipe.load import load_recipe
from dasd_megatron.recipe.schema import Recipe
from dasd_megatron.recipe.steps import ENGINE_KINDS, Step, steps_of

# In a step's folder: how often in a row a job of it began where the one before had begun.
ATTEMPTS = ".attempts.json"
# Ports of torchrun's rendezvous; jobs that share a node take different ones.
FIRST_PORT, PORTS = 20_000, 10_000
# What a step that failed for a reason of its own exits with; every rank and replica raises it.
FAILED_CODE = 2
# Verdicts. `started` stands until there is another: the node was lost, or its processes were killed.
STARTED, DONE, FAILED, AGAIN = "started", "done", "failed", "again"
EXIT_CODES = {DONE: 0, FAILED: FAILED_CODE, AGAIN: Stopped.EXIT_CODE}


def lead(recipe: Recipe, path: Path, step: Step, processes: int) -> str:
    """Runs the step, or the first node's ranks of it; returns the verdict."""
    if step.done:
        return DONE
    count_attempt(step, recipe.launch.retries)
    if step.kind == "train":
        code = _train(path, step, processes)
    else:
        code = _run([sys.executable, "-m", RUN_STEP, str(path), step.name, "--attempt", _attempt()], step)
    if not step.done:
        return FAILED if code == FAILED_CODE else AGAIN
    if step.kind == "report":
        publish(recipe, steps_of(recipe))
    return DONE


def follow(path: Path, step: Step, processes: int) -> str:
    """Another node's ranks or replicas. Returns DONE unless they were lost, so that srun ends the job in that case alone."""
    if step.kind == "train":
        return DONE if step.done or _train(path, step, processes) in EXIT_CODES.values() else AGAIN
    if step.kind in ENGINE_KINDS:
        command = ["-m", RUN_STEP, str(path), step.name, "--replica", "--attempt", _attempt()]
        for replica in start_replicas(processes, step.execution, command):
            replica.wait()  # one that fails gives its shard back to the others
    return DONE


def count_attempt(step: Step, retries: int) -> None:
    """Notes that a job begins. Raises UserError where `retries` jobs before it, one after another, got no further."""
    path = step.folder / ATTEMPTS
    shards = len(list(step.folder.glob("*.parquet")))
    checkpoint = max((folder.name for folder in step.folder.glob("step-*")), default="")
    mark, before = [shards, checkpoint], {}
    if path.is_file():
        before = json.loads(path.read_text())
    without = before["without_progress"] + 1 if before.get("mark") == mark else 0
    if without > retries:
        path.unlink()  # whoever submits again has mended something
        raise UserError(
            f"{step.name}: {without} attempts in a row have got no further (launch.retries={retries}); see their logs; "
            "where they reached the time limit, raise launch.*.time"
        )
    write_json(path, {"mark": mark, "without_progress": without})


def check_shared(recipe: Recipe, submission: str) -> None:
    """Raises UserError unless this node sees the run folder that the submission wrote to."""
    path = recipe.run_dir / SUBMISSION
    if not path.is_file():
        raise UserError(
            f"{recipe.run_dir}: not the run folder that this run was submitted with: {SUBMISSION} isn't there on "
            f"{socket.gethostname()}; choose a run_dir on a file system that all nodes mount (in containers: list it under "
            "mounts of the cluster file)"
        )
    found = Submission.read(path).id
    if found != submission:
        raise UserError(
            f"{path}: the run was submitted again since, as {found}; this job of {submission} leaves it alone"
        )


def _train(path: Path, step: Step, processes: int) -> int:
    nodes = os.environ["SLURM_NNODES"]
    where = ["--standalone"]
    if nodes != "1":
        port = FIRST_PORT + int(os.environ["SLURM_JOB_ID"]) % PORTS
        where = ["--nnodes", nodes, "--node-rank", os.environ["SLURM_PROCID"]]
        where += ["--master-addr", os.environ["MASTER_ADDR"], "--master-port", str(port)]
    command = [sys.executable, "-m", RANKS, *where, "--nproc-per-node", str(processes), "-m", RUN_STEP]
    in_child, environment = child_options()
    process: subprocess.Popen[bytes] | None = None
    with passed_on(lambda: [process.pid] if process else []):
        command += [str(path), step.name, "--attempt", _attempt()]
        environment["OMP_NUM_THREADS"] = str(step.execution["threads"])
        process = subprocess.Popen(command, env=environment, preexec_fn=in_child)
        return process.wait()


def _run(command: Sequence[str], step: Step) -> int:
    """Waits for a process. The signal that comes before the time limit ends it at once: its shards are on disk."""
    in_child, environment = child_options()

    def out_of_time(number: int, frame: FrameType | None) -> Never:
        print(f"{step.name}: the time limit is near; the next job goes on with what is left", file=sys.stderr)
        raise Stopped

    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # inherited: Slurm signals every process
    process = subprocess.Popen(command, env=environment, preexec_fn=in_child)
    signal.signal(signal.SIGUSR1, out_of_time)
    try:
        return process.wait()
    except Stopped:
        process.kill()
        return Stopped.EXIT_CODE


def _attempt() -> str:
    return f"{os.environ['SLURM_JOB_ID']}.{os.environ.get('SLURM_RESTART_COUNT', '0')}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("step")
    parser.add_argument("--submission", required=True)
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--verdict", type=Path, required=True)
    args = parser.parse_args(arguments)
    leads = os.environ["SLURM_PROCID"] == "0"
    try:
        if leads:
            _write(args.verdict, STARTED)
        recipe = load_recipe(args.recipe)
        check_shared(recipe, args.submission)
        step = find_step(steps_of(recipe), args.step, args.recipe)
        verdict = (
            lead(recipe, args.recipe, step, args.processes) if leads else follow(args.recipe, step, args.processes)
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        _write(args.verdict, FAILED)
        return FAILED_CODE
    if leads:
        _write(args.verdict, verdict)
    return EXIT_CODES[verdict]


def _write(path: Path, verdict: str) -> None:
    write_atomically(path, lambda file: file.write(verdict.encode()))


if __name__ == "__main__":
    sys.exit(main())

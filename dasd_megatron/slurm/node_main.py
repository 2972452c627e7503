"""One node's part of a step's job, as srun starts it: torchrun's ranks, replicas, or the step itself.

python -m dasd_megatron.slurm.node_main RECIPE STEP --submission ID [--run-dir FOLDER] --processes N --outcome FILE

The first node holds the step's lease, and its outcome tells the job's script (job_script.py) how to end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Never

from dasd_megatron.artifacts.writer import ArtifactWriter
from dasd_megatron.config.load import load_recipe
from dasd_megatron.config.recipe import Recipe
from dasd_megatron.pipeline.graph import REPORT, build_steps, find_step
from dasd_megatron.runtime.local_runner import TORCHRUN
from dasd_megatron.runtime.publish import publish
from dasd_megatron.runtime.replicas import replica_count, start_replicas
from dasd_megatron.runtime.run_step import RUN_STEP
from dasd_megatron.runtime.submission_record import SUBMISSION, Submission
from dasd_megatron.slurm.grace_period import EarlyStop
from dasd_megatron.slurm.job_script import ATTEMPTS, ENDS
from dasd_megatron.steps.step import Ranks, Replicas, Step
from dasd_megatron.utils.child_process import child_options, forward_signals
from dasd_megatron.utils.errors import Stopped, UserError
from dasd_megatron.utils.files import write_atomically, write_json

# In a job's folder: how far its step was when the latest attempt began.
BEGAN = "began.json"
# Ports of torchrun's rendezvous; jobs that share a node take different ones.
FIRST_PORT, PORTS = 20_000, 10_000
# What a step that failed for a reason of its own exits with; every rank and replica raises it.
FAILED_CODE = 2
# Outcomes. `started` stands until there is another: the node was lost, or its processes were killed.
STARTED, DONE, FAILED, AGAIN = "started", "done", "failed", "again"
EXIT_CODES = {DONE: 0, FAILED: FAILED_CODE, AGAIN: Stopped.EXIT_CODE}


def run_first_node(recipe: Recipe, path: Path, step: Step, processes: int) -> str:
    """Runs the step, or the first node's ranks of it; returns the outcome."""
    if step.done:
        return DONE
    if isinstance(step.processes, Ranks):
        code = _train(path, step, processes, is_first=True)
    else:
        code = _run([sys.executable, "-m", RUN_STEP, str(path), step.name, "--attempt", _attempt()], step)
    if not step.done:
        return FAILED if code == FAILED_CODE else AGAIN
    if step.name == REPORT:
        publish(recipe, build_steps(recipe))
    return DONE


def run_other_node(path: Path, step: Step, processes: int) -> str:
    """Another node's ranks or replicas. Returns DONE unless they were lost, so that srun ends the job in that case alone."""
    if isinstance(step.processes, Ranks):
        return DONE if step.done or _train(path, step, processes, is_first=False) in EXIT_CODES.values() else AGAIN
    if isinstance(step.processes, Replicas):
        command = ["-m", RUN_STEP, str(path), step.name, "--replica", "--attempt", _attempt()]
        count = processes if step.processes.gpus_each else replica_count(step.processes)
        for replica in start_replicas(count, step.processes.gpus_each, command):
            replica.wait()  # one that fails gives its shard back to the others
    return DONE


def reset_attempts(step: Step, job_folder: Path) -> None:
    """Resets the job's count of attempts where the one before this got further than it had begun."""
    shards = len(list(step.folder.glob("*.parquet")))
    checkpoint = max((folder.name for folder in step.folder.glob("step-*")), default="")
    # A journal with its process's name in it: there is a new one for each attempt that got a response.
    journals = sorted(path.name for path in ArtifactWriter(step.folder, {}).journals.glob("[0-9]*"))
    now = {"shards": shards, "checkpoint": checkpoint, "journals": journals}
    began = job_folder / BEGAN
    with contextlib.suppress(OSError, ValueError):  # absent at first, or truncated by a lost node
        if json.loads(began.read_text()) != now:
            (job_folder / ATTEMPTS).unlink(missing_ok=True)
    write_json(began, now)


def check_shared(run_dir: Path, submission: str) -> None:
    """Raises UserError unless this node sees the run folder that the submission wrote to."""
    path = run_dir / SUBMISSION
    if not path.is_file():
        raise UserError(
            f"{run_dir}: not the run folder that this run was submitted with: {SUBMISSION} isn't there on "
            f"{socket.gethostname()}; choose a run_dir on a file system that all nodes mount (in containers: list it under "
            "mounts of the cluster file), or submit again if the file was deleted"
        )
    found = Submission.read(path).id
    if found != submission:
        raise UserError(
            f"{path}: the run was submitted again since, as {found}; this job of {submission} leaves it alone"
        )


def _train(path: Path, step: Step, processes: int, is_first: bool) -> int:
    nodes = os.environ["SLURM_NNODES"]
    where = ["--standalone"]
    if nodes != "1":
        port = FIRST_PORT + int(os.environ["SLURM_JOB_ID"]) % PORTS
        where = ["--nnodes", nodes, "--node-rank", os.environ["SLURM_PROCID"]]
        where += ["--master-addr", os.environ["MASTER_ADDR"], "--master-port", str(port)]
    command = [sys.executable, "-m", TORCHRUN, *where, "--nproc-per-node", str(processes), "-m", RUN_STEP]
    in_child, environment = child_options()
    process: subprocess.Popen[bytes] | None = None
    early: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
    if is_first:  # the ranks of other nodes hear of it from this node's
        early = EarlyStop(step, float(os.environ[ENDS]), lambda: os.kill(os.getpid(), signal.SIGUSR1))
    with forward_signals(lambda: [process.pid] if process else []), early:
        command += [str(path), step.name, "--attempt", _attempt()]
        environment["OMP_NUM_THREADS"] = str(step.config.threads)
        process = subprocess.Popen(command, env=environment, preexec_fn=in_child)
        return process.wait()


def _run(command: Sequence[str], step: Step) -> int:
    """Waits for a process. The signal that comes before the time limit ends it at once: its shards are on disk."""
    in_child, environment = child_options()

    def out_of_time(number: int, frame: FrameType | None) -> Never:
        print(f"{step.name}: the time limit is near; the next job resumes with what is left", file=sys.stderr)
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
    parser.add_argument(
        "--run-dir", type=Path, help="with the submission's record, where it isn't the recipe's run_dir"
    )
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--outcome", type=Path, required=True)
    args = parser.parse_args(arguments)
    is_first = os.environ["SLURM_PROCID"] == "0"
    try:
        if is_first and not args.outcome.exists():  # another node may have failed already
            _write(args.outcome, STARTED)
        recipe = load_recipe(args.recipe)
        check_shared(args.run_dir or recipe.run_dir, args.submission)
        step = find_step(build_steps(recipe), args.step, args.recipe)
        if is_first:
            reset_attempts(step, args.outcome.parent)
            outcome = run_first_node(recipe, args.recipe, step, args.processes)
        else:
            outcome = run_other_node(args.recipe, step, args.processes)
    except Exception as error:
        if isinstance(error, UserError):
            print(f"error: {error}", file=sys.stderr, flush=True)
        else:  # a defect of ours, or of the node: another attempt would only repeat it
            traceback.print_exc()
        _write(args.outcome, FAILED)
        return FAILED_CODE
    if is_first and args.outcome.read_text() != FAILED:
        _write(args.outcome, outcome)
    return EXIT_CODES[outcome]


def _write(path: Path, outcome: str) -> None:
    write_atomically(path, lambda file: file.write(outcome.encode()))


if __name__ == "__main__":
    sys.exit(main())

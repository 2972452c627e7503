"""Follows a run's jobs until the last has ended, says what changes, and why a step failed."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import replace

from dasd_megatron.config.recipe import Recipe
from dasd_megatron.slurm.experiment import job_prefix
from dasd_megatron.slurm.job_script import TOO_MANY
from dasd_megatron.slurm.login_node import LoginNode
from dasd_megatron.slurm.slurm_client import SUCCEEDED, ControllerAway, SlurmJob
from dasd_megatron.steps.step import Step
from dasd_megatron.utils.errors import UserError

# Seconds between looks at Slurm: what its administrators ask of scripts, and soon enough for jobs of minutes.
POLL = 5.0
LOG_LINES = 25


def monitor(login_node: LoginNode, recipe: Recipe, steps: Mapping[str, Step]) -> int:
    """Follows the jobs of the run's latest submission, as far as they are of `steps`. Returns the exit code."""
    submission = login_node.submission(recipe)
    if submission is None:
        raise UserError(f"{recipe.run_dir}: nothing was submitted")
    prefix = job_prefix(recipe)
    found = submission.jobs or login_node.slurm.begun_since([prefix + step for step in steps], submission.time)
    ids = {step: id for step, id in found.items() if step in steps}
    print(f"following {len(ids)} jobs of {submission.id}", flush=True)
    try:
        ended = Watch(login_node, steps, ids, prefix, submission.folder).until_ended() if ids else []
    except KeyboardInterrupt:
        print("\nthe jobs continue; --watch follows them again, and this cancels them:")
        print(f"  scancel {' '.join(ids.values())}")
        return 130
    failed = [job for job in ended if job.state != SUCCEEDED]
    left = [name for name, step in steps.items() if not step.remote and not step.done]
    if failed:
        own = [job.step for job in failed if not _was_waiting(job)]
        waited = [job.step for job in failed if _was_waiting(job)]
        print(
            f"error: {', '.join(own) or 'a step'} did not succeed (see above)"
            + (f"; cancelled with it: {', '.join(waited)}" if waited else "")
            + "; the same command resumes from here",
            file=sys.stderr,
        )
        return 2
    if not submission.jobs:
        print(f"error: {submission.id} was interrupted before every job was submitted; submit again", file=sys.stderr)
        return 2
    print(f"{len(steps) - len(left)} of {len(steps)} steps are done: {recipe.run_dir}")
    return 0


class Watch:
    """Knows each job's last state."""

    def __init__(
        self, login_node: LoginNode, steps: Mapping[str, Step], ids: Mapping[str, str], prefix: str, folder: str
    ) -> None:
        self._login_node, self._steps, self._ids, self._folder = login_node, steps, ids, folder
        self._names = [prefix + step for step in ids]
        self._seen: dict[str, str] = {}
        self._held: set[str] = set()
        self._away = False

    def until_ended(self) -> list[SlurmJob]:
        """All jobs, once none will run again by itself."""
        while True:
            try:
                # In this order: a job that ends in between is seen as active once more.
                active = {job.id: job for job in self._login_node.slurm.active(self._names)}
                known = {job.id: job for job in self._login_node.slurm.jobs(list(self._ids.values()))}
            except ControllerAway as error:
                self._say_away(error)
            else:
                self._away = False
                # Accounting is late at times, and then knows neither a job's name nor its end.
                found = {step: active.get(id) or known.get(id) for step, id in self._ids.items()}
                current = [replace(job, name=step) for step, job in found.items() if job is not None]
                for job in current:
                    self._tell(job)
                if len(current) == len(self._ids) and all(job.ended for job in current):
                    return current
            time.sleep(POLL)

    def _say_away(self, error: ControllerAway) -> None:
        if not self._away:
            print(f"{error}; jobs are not touched by that, watching continues", flush=True)
        self._away = True

    def _tell(self, job: SlurmJob) -> None:
        before = self._seen.get(job.id)
        if job.state == "PENDING" and "held" in job.reason.lower():
            self._tell_held(job)
        if job.state == before:
            return
        self._seen[job.id] = job.state
        where = f" on {job.nodes}" if job.nodes and job.state == "RUNNING" else ""
        again = " again: it resumes where it was stopped" if job.state == "PENDING" and before is not None else ""
        if job.state == "COMPLETING" or (job.state == "PENDING" and before is None) or _was_waiting(job):
            return
        print(f"{time.strftime('%H:%M:%S')} {job.step} (job {job.id}): {job.state}{where}{again}", flush=True)
        if job.ended and job.state != SUCCEEDED:
            print(f"{job.step}: {explanation(job, self._steps[job.step].group)}", flush=True)
            print(self._end_of_log(job), flush=True)

    def _tell_held(self, job: SlurmJob) -> None:
        """Nobody but a person lets such a job go."""
        if job.id not in self._held:
            self._held.add(job.id)
            print(f"{job.step} (job {job.id}): held ({job.reason}); `scontrol release {job.id}` lets it go", flush=True)

    def _end_of_log(self, job: SlurmJob) -> str:
        folder = f"{self._folder}/{job.step}"
        # The newest attempt's; the script's own where the step never began.
        logs = f"find {folder} -name 'log-*_{job.id}_*.out' -size +0 2> /dev/null | sort -V | tail -n 1"
        path = (
            self._login_node.run(logs).stdout.strip()
            or self._login_node.run(f"ls {folder}/sbatch_*_{job.id}.out 2> /dev/null").stdout.strip()
        )
        if not path:
            return f"no log in {folder}: is that folder shared between the nodes? (NEMORUN_HOME chooses another)"
        # What a step says of its own failure may stand above what the failure did to other ranks.
        tail = self._login_node.run(f"tail -n {LOG_LINES} '{path}'").stdout.rstrip().splitlines()
        reasons = self._login_node.run(f"grep '^error: ' '{path}' | tail -n 3").stdout.splitlines()
        reasons = [reason for reason in reasons if reason not in tail]
        return "\n".join([*reasons, f"end of {path}:", *(f"    {line}" for line in tail)])


def explanation(job: SlurmJob, group: str) -> str:
    """Why a job ended, and what to do. `group`: the part of the launch section that its resources come from."""
    launch = f"launch.{group}"
    match job.state:
        case "TIMEOUT":
            return f"reached its time limit before it had saved: raise launch.grace_period_seconds, or {launch}.time"
        case "OUT_OF_MEMORY":
            return f"out of memory: raise {launch}.memory_per_node, or lower what the step holds"
        case "CANCELLED":
            return f"cancelled {job.reason}"
        case "NODE_FAIL" | "BOOT_FAIL":
            return f"lost its node ({job.nodes}), and Slurm did not queue it again"
        case "PREEMPTED":
            return "pre-empted, and not queued again"
        case "FAILED" if job.exit_code == TOO_MANY:
            return "too many attempts in a row got no further (launch.retries); the last one's log:"
        case "FAILED" if job.exit_code == 2:
            return "failed, for the reason in its log:"
        case "FAILED" if job.exit_code == 1:
            return "its node could not begin it (image, interpreter, mounts, a line of setup):"
        case "FAILED" if job.exit_code == 75:
            return "stopped to be queued again, which Slurm refused (see the job's sbatch log)"
    return f"{job.state}, exit code {job.exit_code}"


def _was_waiting(job: SlurmJob) -> bool:
    """Whether a job was cancelled because one that it waited for failed: it never had a node."""
    return job.state == "CANCELLED" and job.nodes in ("", "None assigned")

"""A cluster as seen from here: commands and files on its login node, and whether it would take our jobs."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from paramiko import SSHException

from dasd_megatron.config.recipe import Recipe
from dasd_megatron.planning.job_resources import time_limit
from dasd_megatron.runtime.submission_record import SUBMISSION, Submission
from dasd_megatron.slurm.cluster_config import ClusterConfig
from dasd_megatron.slurm.experiment import StepJob, image_of, job_prefix, tunnel_of, whole_nodes
from dasd_megatron.slurm.slurm_client import Result, SlurmClient
from dasd_megatron.utils.errors import UserError


@dataclass
class Unreachable:
    """What a command gives that never ran."""

    stderr: str
    stdout: str = ""
    return_code: int = 255


class LoginNode:
    """The cluster's login node: this machine, or one behind an SSH tunnel."""

    def __init__(self, cluster: ClusterConfig) -> None:
        self.cluster = cluster
        self._tunnel = tunnel_of(cluster)
        self.slurm = SlurmClient(self.run)

    @property
    def host(self) -> str:
        """Its name, for messages."""
        return "this machine" if self.cluster.tunnel is None else self.cluster.tunnel.host

    def run(self, command: str) -> Result:
        """Runs a shell command there. As with ssh, the return code is 255 where it can't be reached."""
        try:
            result: Result = self._tunnel.run(command, hide=True, warn=True, in_stream=False)
        except (OSError, EOFError, SSHException) as error:
            return Unreachable(f"{self.host} can't be reached: {error}")
        except SystemExit:  # NeMo-Run's, where no key and no password is accepted
            return Unreachable(f"{self.host} refuses the login; see `tunnel` in the cluster file")
        return result

    def check_login(self) -> None:
        """Raises UserError unless Slurm's commands are there, and the secrets that jobs will inherit."""
        found = self.run("command -v sbatch squeue sacct scancel")
        if isinstance(found, Unreachable):
            raise UserError(found.stderr)
        if found.return_code:
            raise UserError(
                f"sbatch isn't installed on {self.host}, or not on its PATH: submit from a login node, or name one under "
                "`tunnel` in the cluster file"
            )
        if self.run("sacct --noheader --starttime=now").return_code:
            raise UserError(
                f"sacct doesn't answer on {self.host}; jobs can only be followed where Slurm keeps accounts (slurmdbd)"
            )
        # Only names go over the line, and into this process's list.
        missing = [name for name in self.cluster.secrets if self.run(f'test -n "${{{name}}}"').return_code]
        if missing:
            raise UserError(
                f"{', '.join(missing)}: not set in the environment of {self.host}; export it before you submit, or take it off "
                "`secrets` in the cluster file"
            )

    def check_jobs(self, jobs: Sequence[StepJob]) -> None:
        """Raises UserError where an image isn't there, or Slurm would refuse a job (account, partition, limits)."""
        for image in sorted({image for job in jobs if (image := image_of(job, self.cluster)) is not None}):
            if image.startswith("/") and self.run(f"test -f {shlex.quote(image)}").return_code:
                raise UserError(f"{image}: no such image on {self.host}; docs/cluster.md says how to make it")
        asked: dict[tuple[str, ...], StepJob] = {}
        for job in jobs:
            asked.setdefault(tuple(self._flags(job)), job)
        for flags, job in asked.items():
            self.slurm.check(flags, job.step.name)

    def _flags(self, job: StepJob) -> list[str]:
        resources = job.resources
        flags: dict[str, object] = {
            "account": self.cluster.account,
            "partition": self.cluster.partitions.get(resources.group, self.cluster.partition),
            "reservation": self.cluster.reservation,
            "time": time_limit(resources.time),
            "nodes": resources.nodes,
            "gpus-per-node": resources.gpus_per_node or None,
            "cpus-per-task": resources.cpus_per_node,
            "mem": resources.memory_per_node,
            **whole_nodes(resources),
            **{name.replace("_", "-"): value for name, value in self.cluster.sbatch.items()},
        }
        given = {name: value for name, value in flags.items() if value is not None and value is not False}
        return [f"--{name}" if value is True else f"--{name}={value}" for name, value in given.items()]

    def check_free(self, recipe: Recipe, steps: Iterable[str]) -> None:
        """Raises UserError naming who submitted it where jobs of this run are queued or running."""
        submission = self.submission(recipe)
        # Those of the latest submission, too: a recipe that was changed may imply other steps.
        names = {*steps, *(submission.jobs if submission else [])}
        jobs = self.slurm.active([job_prefix(recipe) + name for name in sorted(names)])
        if jobs:
            by = f"by {jobs[0].user}"
            if submission is not None:
                by = f"{submission.id} by {submission.user} from {submission.host}, {submission.time}"
                by += "" if submission.jobs else "; it was interrupted before every job was submitted"
            shown = ", ".join(f"{job.id} {job.step} ({job.state}, {job.user})" for job in jobs[:5])
            raise UserError(
                f"{recipe.run_dir}: this run is already submitted ({by}); {len(jobs)} of its jobs are queued or running: {shown}"
                f"{', ...' if len(jobs) > 5 else ''}. Follow them with --watch, or cancel them with: "
                f"scancel {' '.join(job.id for job in jobs)}"
            )

    def submission(self, recipe: Recipe) -> Submission | None:
        """The run's latest, if any."""
        path = recipe.run_dir / SUBMISSION
        result = self.run(f"cat {shlex.quote(str(path))}")
        return Submission.parse(result.stdout, path) if result.return_code == 0 else None

    def record(self, recipe: Recipe, submission: Submission) -> None:
        """Writes it into the run folder, by which nodes know that they share the folder."""
        path = recipe.run_dir / SUBMISSION
        temporary = shlex.quote(f"{path}.tmp")
        done = self.run(
            f"mkdir -p {shlex.quote(str(path.parent))} && printf %s {shlex.quote(submission.text())} > {temporary} && "
            f"mv {temporary} {shlex.quote(str(path))}"
        )
        if done.return_code:
            raise UserError(f"{path}: can't be written on {self.host}: {done.stderr.strip()}")

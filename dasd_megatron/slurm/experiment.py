"""A recipe's steps as one NeMo-Run experiment on a Slurm cluster: one job a step, each after the jobs that it reads from."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nemo_run as run
from nemo_run.config import get_nemorun_home
from rich.console import Console

from dasd_megatron.config.load import recipe_text
from dasd_megatron.config.recipe import Recipe
from dasd_megatron.planning.job_resources import JobResources, job_resources, time_limit
from dasd_megatron.slurm.cluster_config import ClusterConfig
from dasd_megatron.slurm.grace_period import measured_grace_period
from dasd_megatron.slurm.job_script import OUTCOME, setup_lines
from dasd_megatron.slurm.source_package import RECIPE, TREE, SourcePackage
from dasd_megatron.steps.step import Ranks, Step
from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.hashing import hash_json

NODE_MAIN = "dasd_megatron.slurm.node_main"
# Inside a container, where NeMo-Run mounts a job's own folder; outside it writes that folder's path in its place.
JOB_FOLDER = "/nemo_run"
# Seconds before the time limit when steps other than training are stopped: what they finished is on disk.
SHORT_GRACE_PERIOD = 30


@dataclass(frozen=True)
class StepJob:
    """One step's job: what it gets, and the jobs that must have ended well before it.

    Attributes:
        name: unique in the experiment.
        recipe: whose step it is.
        file: where nodes find that recipe; None: it's the one that is shipped.
    """

    name: str
    step: Step
    recipe: Recipe
    file: Path | None
    resources: JobResources
    after: tuple[str, ...]
    grace_period_seconds: int


def jobs_of(
    recipe: Recipe,
    steps: Mapping[str, Step],
    cluster: ClusterConfig,
    owners: Mapping[str, tuple[Recipe, Path]] | None = None,
) -> list[StepJob]:
    """Jobs of the steps that aren't done. Raises UserError where the cluster can't give what one needs.

    Args:
        steps: by name; those of several recipes by the names of their folders.
        owners: of several recipes, by the same names: whose step it is, and that recipe's file, which all nodes see.
    """
    measured = max(0, *map(measured_grace_period, steps.values()))
    jobs: list[StepJob] = []
    ancestors: dict[str, set[str]] = {}
    for name, step in steps.items():
        sources = [source for source in step.inputs.values() if isinstance(source, Step)]
        named = [source.folder.name if owners else source.name for source in sources]
        parents = [parent for parent in dict.fromkeys(named) if parent in steps and not steps[parent].done]
        ancestors[name] = set(parents).union(*(ancestors[parent] for parent in parents))
        if step.done:
            continue
        owner, file = owners[name] if owners else (recipe, None)
        resources = job_resources(owner, step, cluster.gpus_per_node)
        grace_period = SHORT_GRACE_PERIOD
        if isinstance(step.processes, Ranks):
            grace_period = max(owner.launch.grace_period_seconds, measured)
        if grace_period >= resources.time:
            raise UserError(
                f"{step.name}: the time limit {time_limit(resources.time)} is no longer than the {grace_period} seconds that it "
                f"is told to stop before; raise launch.{resources.group}.time"
            )
        # A job that waits for another needn't wait for what that one waits for.
        implied = set().union(*(ancestors[parent] for parent in parents))
        after = [parent for parent in parents if parent not in implied]
        jobs.append(StepJob(name, step, owner, file, resources, tuple(after), grace_period))
    return jobs


def job_prefix(recipe: Recipe) -> str:
    """What the names of this run's jobs begin with: by the run folder alone, which no two submissions may share."""
    return f"{re.sub('[^A-Za-z0-9_-]', '_', recipe.run_dir.name)}-{hash_json(str(recipe.run_dir))[:8]}."


def experiments_folder(cluster: ClusterConfig) -> str:
    """The folder of all experiments on the cluster."""
    return cluster.tunnel.job_dir if cluster.tunnel else f"{get_nemorun_home()}/experiments"


def experiment_folder(cluster: ClusterConfig, recipe: Recipe, experiment: str) -> str:
    """The folder of an experiment on the cluster: code, recipe, and each job's scripts and logs."""
    return f"{experiments_folder(cluster)}/{recipe.name}/{experiment}"


def build(
    recipe: Recipe,
    jobs: Sequence[StepJob],
    cluster: ClusterConfig,
    experiment: str,
    ships_tree: bool,
    base_dir: Path | None = None,
) -> run.Experiment:
    """NeMo-Run's experiment of these jobs, its name `experiment`; nothing is submitted.

    `base_dir` takes its files on this machine, by default NeMo-Run's home.
    """
    built = run.Experiment(
        recipe.name,
        id=experiment,
        base_dir=None if base_dir is None else str(base_dir),
        log_level="ERROR",
        enable_goodbye_message=False,
        skip_status_at_exit=True,
        serialize_metadata_for_scripts=False,
    )
    # Quiet here alone: its clean_mode would also silence `nemorun experiment status` later.
    built.console = Console(quiet=True)
    package = SourcePackage(recipe=recipe_text(recipe), tree=ships_tree)
    folder = experiment_folder(cluster, recipe, experiment)
    if re.search(r"\s", folder) or (not cluster.images and JOB_FOLDER in folder):
        raise UserError(
            f"{folder}: NeMo-Run can't work in a folder with white space or {JOB_FOLDER} in its path; choose another "
            "NEMORUN_HOME, or another tunnel.job_dir"
        )
    with built:
        for job in jobs:
            built.add(
                _script(job, cluster, folder, experiment, recipe.run_dir),
                executor=_executor(recipe, job, cluster, folder, package),
                name=job.name,
                dependencies=list(job.after),
            )
    return built


def _script(job: StepJob, cluster: ClusterConfig, folder: str, experiment: str, run_dir: Path) -> run.Script:
    """`run_dir`: the folder with the submission's record."""
    arguments = [str(job.file or f"{folder}/{RECIPE}"), job.step.name, "--submission", experiment]
    arguments += [] if job.file is None else ["--run-dir", str(run_dir)]
    arguments += ["--processes", str(job.resources.processes_per_node), "--outcome", f"{JOB_FOLDER}/{OUTCOME}"]
    python = cluster.python or ("python" if cluster.images else sys.executable)
    return run.Script(path=NODE_MAIN, m=True, entrypoint=python, args=[shlex.quote(argument) for argument in arguments])


def _executor(
    recipe: Recipe, job: StepJob, cluster: ClusterConfig, folder: str, package: SourcePackage
) -> run.SlurmExecutor:
    resources = job.resources
    image = image_of(job, cluster)
    tree = f"{folder}/{TREE}" if package.tree else None
    parameters = {
        "kill_on_invalid_dep": "yes",
        "reservation": cluster.reservation,
        **whole_nodes(resources),
        **cluster.sbatch,
    }
    return run.SlurmExecutor(
        account=cluster.account,
        partition=cluster.partitions.get(resources.group, cluster.partition),
        job_name_prefix=job_prefix(recipe),
        time=time_limit(resources.time),
        nodes=resources.nodes,
        ntasks_per_node=1,
        gpus_per_node=resources.gpus_per_node or None,
        cpus_per_task=resources.cpus_per_node,
        mem=resources.memory_per_node,
        signal=f"USR1@{job.grace_period_seconds}",
        container_image=image,
        container_mounts=[] if image is None else [f"{folder}:{folder}", *cluster.mounts],
        additional_parameters={
            name: value for name, value in parameters.items() if value is not None and value is not False
        },
        srun_args=["--wait=0"],  # nodes that are ready earlier don't end the others
        env_vars={"MASTER_ADDR": "${head_node_ip%% *}"},
        setup_lines=setup_lines(
            f"{folder}/{job.name}", tree, cluster.environment, cluster.setup, resources.time, job.recipe.launch.retries
        ),
        tunnel=tunnel_of(cluster),
        packager=package,
        monitor_group_job=False,
        poll_estimated_start_time=False,
    )


def whole_nodes(resources: JobResources) -> dict[str, Any]:
    """sbatch's parameters by which a job with GPUs has its nodes' CPUs and memory to itself; empty where it says how much.

    Slurm would give it one CPU, and that one's share of the memory.
    """
    if not resources.gpus_per_node or resources.cpus_per_node is not None:
        return {}
    return {"exclusive": True, **({} if resources.memory_per_node else {"mem": "0"})}


def image_of(job: StepJob, cluster: ClusterConfig) -> str | None:
    """The container image of a job; None on a cluster without containers. Raises UserError where it isn't listed."""
    if not cluster.images:
        return None
    if job.resources.image not in cluster.images:
        raise UserError(
            f"{job.step.name}: the cluster file lists no image {job.resources.image!r} (images: {', '.join(cluster.images)}); "
            f"add it there, or choose another with launch.{job.resources.group}.image"
        )
    return cluster.images[job.resources.image]


def tunnel_of(cluster: ClusterConfig) -> run.LocalTunnel | run.SSHTunnel:
    """How commands reach the cluster."""
    if cluster.tunnel is None:
        return run.LocalTunnel(job_dir="")
    return run.SSHTunnel(**cluster.tunnel.model_dump(mode="json", exclude_none=True))

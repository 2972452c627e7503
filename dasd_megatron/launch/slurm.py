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
import yaml
from nemo_run.config import get_nemorun_home
from rich.console import Console

from dasd_megatron.artifacts.hashing import hash_json
from dasd_megatron.errors import UserError
from dasd_megatron.launch.cluster import Cluster
from dasd_megatron.launch.job_script import VERDICT, setup_lines
from dasd_megatron.launch.lead import measured_lead
from dasd_megatron.launch.shipment import RECIPE, TREE, Shipment
from dasd_megatron.recipe.resources import JobResources, job_resources, time_limit
from dasd_megatron.recipe.schema import Recipe
from dasd_megatron.recipe.steps import Step

NODE = "dasd_megatron.launch.node"
# Inside a container, where NeMo-Run mounts a job's own folder; outside it writes that folder's path in its place.
JOB_FOLDER = "/nemo_run"
# Seconds before the time limit when steps other than training are stopped: what they finished is on disk.
SHORT_LEAD = 30


@dataclass(frozen=True)
class Job:
    """One step's job: what it gets, and the jobs that must have ended well before it."""

    step: Step
    resources: JobResources
    after: tuple[str, ...]
    lead_seconds: int


def jobs_of(recipe: Recipe, steps: Mapping[str, Step], cluster: Cluster) -> list[Job]:
    """Jobs of the steps that aren't done. Raises UserError where the cluster can't give what one needs."""
    measured = max(0, *map(measured_lead, steps.values()))
    jobs: list[Job] = []
    ancestors: dict[str, set[str]] = {}
    for step in steps.values():
        parents = [source.name for source in step.inputs.values() if isinstance(source, Step) and source.name in steps]
        ancestors[step.name] = set(parents).union(*(ancestors[parent] for parent in parents))
        if step.done:
            continue
        resources = job_resources(recipe, step, cluster.gpus_per_node)
        lead = max(recipe.launch.lead_seconds, measured) if step.kind == "train" else SHORT_LEAD
        if lead >= resources.time:
            raise UserError(
                f"{step.name}: the time limit {time_limit(resources.time)} is no longer than the {lead} seconds that it is told "
                f"to stop before; raise launch.{resources.group}.time"
            )
        # A job that waits for another needn't wait for what that one waits for.
        implied = set().union(*(ancestors[parent] for parent in parents))
        after = [name for name in dict.fromkeys(parents) if name not in implied and not steps[name].done]
        jobs.append(Job(step, resources, tuple(after), lead))
    return jobs


def job_prefix(recipe: Recipe) -> str:
    """What the names of this run's jobs begin with: by the run folder alone, which no two submissions may share."""
    return f"{re.sub('[^A-Za-z0-9_-]', '_', recipe.run_dir.name)}-{hash_json(str(recipe.run_dir))[:8]}."


def experiments_folder(cluster: Cluster) -> str:
    """The folder of all experiments on the cluster."""
    return cluster.tunnel.job_dir if cluster.tunnel else f"{get_nemorun_home()}/experiments"


def experiment_folder(cluster: Cluster, recipe: Recipe, experiment: str) -> str:
    """The folder of an experiment on the cluster: code, recipe, and each job's scripts and logs."""
    return f"{experiments_folder(cluster)}/{recipe.name}/{experiment}"


def build(
    recipe: Recipe,
    jobs: Sequence[Job],
    cluster: Cluster,
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
    shipment = Shipment(recipe=recipe_text(recipe), tree=ships_tree)
    folder = experiment_folder(cluster, recipe, experiment)
    if re.search(r"\s", folder) or (not cluster.images and JOB_FOLDER in folder):
        raise UserError(
            f"{folder}: NeMo-Run can't work in a folder with white space or {JOB_FOLDER} in its path; choose another "
            "NEMORUN_HOME, or another tunnel.job_dir"
        )
    with built:
        for job in jobs:
            built.add(
                _script(job, cluster, folder, experiment),
                executor=_executor(recipe, job, cluster, folder, shipment),
                name=job.step.name,
                dependencies=list(job.after),
            )
    return built


def recipe_text(recipe: Recipe) -> str:
    """The recipe with its overrides and defaults, as a recipe file."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _script(job: Job, cluster: Cluster, folder: str, experiment: str) -> run.Script:
    arguments = [f"{folder}/{RECIPE}", job.step.name, "--submission", experiment]
    arguments += ["--processes", str(job.resources.processes_per_node), "--verdict", f"{JOB_FOLDER}/{VERDICT}"]
    python = cluster.python or ("python" if cluster.images else sys.executable)
    return run.Script(path=NODE, m=True, entrypoint=python, args=[shlex.quote(argument) for argument in arguments])


def _executor(recipe: Recipe, job: Job, cluster: Cluster, folder: str, shipment: Shipment) -> run.SlurmExecutor:
    resources = job.resources
    image = image_of(job, cluster)
    tree = f"{folder}/{TREE}" if shipment.tree else None
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
        signal=f"USR1@{job.lead_seconds}",
        container_image=image,
        container_mounts=[] if image is None else [f"{folder}:{folder}", *cluster.mounts],
        additional_parameters={
            name: value for name, value in parameters.items() if value is not None and value is not False
        },
        srun_args=["--wait=0"],  # nodes that are ready earlier don't end the others
        env_vars={"MASTER_ADDR": "${head_node_ip%% *}"},
        setup_lines=setup_lines(
            f"{folder}/{job.step.name}", tree, cluster.environment, cluster.setup, resources.time, recipe.launch.retries
        ),
        tunnel=tunnel_of(cluster),
        packager=shipment,
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


def image_of(job: Job, cluster: Cluster) -> str | None:
    """The container image of a job; None on a cluster without containers. Raises UserError where it isn't listed."""
    if not cluster.images:
        return None
    if job.resources.image not in cluster.images:
        raise UserError(
            f"{job.step.name}: the cluster file lists no image {job.resources.image!r} (images: {', '.join(cluster.images)}); "
            f"add it there, or choose another with launch.{job.resources.group}.image"
        )
    return cluster.images[job.resources.image]


def tunnel_of(cluster: Cluster) -> run.LocalTunnel | run.SSHTunnel:
    """How commands reach the cluster."""
    if cluster.tunnel is None:
        return run.LocalTunnel(job_dir="")
    return run.SSHTunnel(**cluster.tunnel.model_dump(mode="json", exclude_none=True))

"""What each step's job asks of a cluster: the recipe's `launch` section, filled in from the step and the cluster's nodes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from dasd_megatron.errors import UserError
from dasd_megatron.recipe.schema import Parallel, Recipe, Resources
from dasd_megatron.recipe.steps import ENGINE_KINDS, Step

# Parts of the launch section.
Group = Literal["training", "sampling", "data"]


@dataclass(frozen=True)
class JobResources:
    """Resources of one job.

    Attributes:
        group: which part of the launch section they come from.
        processes_per_node: ranks of a training step, engine processes of a sampling step, 1 of others.
        time: the limit, in seconds.
    """

    group: Group
    nodes: int
    gpus_per_node: int
    processes_per_node: int
    cpus_per_node: int | None
    memory_per_node: str | None
    time: int
    image: str


def group_of(kind: str) -> Group:
    """The part of the launch section that steps of this kind go by."""
    if kind == "train":
        return "training"
    return "sampling" if kind in ENGINE_KINDS else "data"


def job_resources(recipe: Recipe, step: Step, gpus_per_node: int) -> JobResources:
    """What `step` needs on a cluster whose nodes have so many GPUs. Raises UserError where it can't be had there."""
    group = group_of(step.kind)
    asked: Resources = getattr(recipe.launch, group)
    asked = asked.model_validate({**asked.model_dump(), **recipe.launch.steps.get(step.name, {})})
    gpus = gpus_per_node if asked.gpus_per_node is None else asked.gpus_per_node
    nodes, processes = asked.nodes or 1, 1
    if group == "training":
        ranks = Parallel(**step.execution["parallel"]).world_size
        nodes = asked.nodes or math.ceil(ranks / (gpus or ranks))
        processes = ranks // nodes
        if ranks % nodes or (gpus and processes > gpus):
            room = f"{nodes} nodes with {gpus} GPUs each" if gpus else f"{nodes} nodes"
            raise UserError(
                f"{step.name}: {ranks} ranks (parallel: {Parallel(**step.execution['parallel'])}) don't fit on {room}; "
                "change parallel, or launch.training.nodes"
            )
        gpus = min(gpus, processes)
    elif group == "sampling":
        tensor_parallel = step.execution["engine"]["tensor_parallel"]
        if gpus and gpus < tensor_parallel:
            raise UserError(
                f"{step.name}: engine.tensor_parallel={tensor_parallel} needs as many GPUs in a node, not {gpus}; lower it, or "
                "raise launch.sampling.gpus_per_node"
            )
        processes = step.execution["replicas"] or max(1, gpus // tensor_parallel)
    return JobResources(
        group=group,
        nodes=nodes,
        gpus_per_node=gpus,
        processes_per_node=processes,
        cpus_per_node=asked.cpus_per_node,
        memory_per_node=asked.memory_per_node,
        time=seconds(asked.time),
        image=asked.image,
    )


def seconds(limit: str) -> int:
    """Seconds of Slurm's [days-]hours:minutes:seconds."""
    days, _, clock = limit.rpartition("-")
    hours, minutes, rest = map(int, clock.split(":"))
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + rest


def time_limit(total: int) -> str:
    """Slurm's [days-]hours:minutes:seconds."""
    minutes, rest = divmod(total, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{f'{days}-' if days else ''}{hours:02}:{minutes:02}:{rest:02}"

"""What each step's job asks of a cluster: the recipe's `launch` section, filled in from the step and the cluster's nodes."""

from __future__ import annotations

import math
from dataclasses import dataclass

from dasd_megatron.config.launch import NodeGroup, ResourcesConfig
from dasd_megatron.config.recipe import Recipe
from dasd_megatron.steps.step import Ranks, Replicas, Step
from dasd_megatron.utils.errors import UserError


@dataclass(frozen=True)
class JobResources:
    """Resources of one job.

    Attributes:
        group: which part of the launch section they come from.
        processes_per_node: ranks of a training step, engine processes of a sampling step, of others as many as it has CPUs (1
            where the recipe doesn't say how many).
        time: the limit, in seconds.
    """

    group: NodeGroup
    nodes: int
    gpus_per_node: int
    processes_per_node: int
    cpus_per_node: int | None
    memory_per_node: str | None
    time: int
    image: str


def job_resources(recipe: Recipe, step: Step, gpus_per_node: int) -> JobResources:
    """What `step` needs on a cluster whose nodes have that number of GPUs. Raises UserError where it can't be had there."""
    group = step.group
    asked: ResourcesConfig = getattr(recipe.launch, group)
    of_step = recipe.launch.steps[step.name].written() if step.name in recipe.launch.steps else {}
    says_image = asked.image != type(asked)().image or "image" in of_step
    asked = asked.model_validate({**asked.model_dump(), **of_step})
    gpus = gpus_per_node if asked.gpus_per_node is None else asked.gpus_per_node
    nodes, processes = asked.nodes or 1, 1
    match step.processes:
        case Ranks() as ranks:
            nodes, processes = _nodes_for(step, ranks, asked.nodes, gpus)
            gpus = min(gpus, processes)
        case Replicas(_, 0):
            processes = asked.cpus_per_node or 1
        case Replicas(count, gpus_each):
            if gpus and gpus < gpus_each:
                raise UserError(
                    f"{step.name}: one engine has {gpus_each} GPUs (engine.tensor_parallel, engine.megatron), and a node {gpus}; "
                    f"lower the one, or raise launch.{group}.gpus_per_node"
                )
            processes = count or max(1, gpus // gpus_each)
    return JobResources(
        group=group,
        nodes=nodes,
        gpus_per_node=gpus,
        processes_per_node=processes,
        cpus_per_node=asked.cpus_per_node,
        memory_per_node=asked.memory_per_node,
        time=seconds(asked.time),
        image=asked.image if says_image else step.kind.image(step.config) or asked.image,
    )


def _nodes_for(step: Step, ranks: Ranks, nodes: int | None, gpus: int) -> tuple[int, int]:
    """Nodes, and ranks on each; `nodes`: how many the recipe asks for, by default as many as the ranks fill."""
    count = ranks.world_size
    nodes = nodes or math.ceil(count / (gpus or count))
    each = count // nodes
    if count % nodes or (gpus and each > gpus):
        room = f"{nodes} nodes with {gpus} GPUs each" if gpus else f"{nodes} nodes"
        raise UserError(
            f"{step.name}: {count} ranks (parallel: {ranks.layout}) don't fit on {room}; change parallel, or "
            "launch.training.nodes"
        )
    return nodes, each


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

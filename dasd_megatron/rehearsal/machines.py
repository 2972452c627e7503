"""As how many processes a run's steps work: on this machine, or on a cluster. No torch."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Protocol

from dasd_megatron.config.gpu_specs import GPU_SPECS, GpuName
from dasd_megatron.config.recipe import Recipe
from dasd_megatron.planning.job_resources import job_resources
from dasd_megatron.runtime.machine import gpu_model
from dasd_megatron.runtime.replicas import replica_count, visible_gpus
from dasd_megatron.slurm.cluster_config import ClusterConfig
from dasd_megatron.steps.step import Ranks, Replicas, Step


class Machines(Protocol):
    """Where a run is rehearsed, and will run."""

    @property
    def gpu(self) -> GpuName | None:
        """The kind of GPU; None where there is none, or it isn't known."""

    @property
    def description(self) -> object:
        """Of all that a rehearsal's numbers depend on, as JSON."""

    @property
    def side_by_side(self) -> bool:
        """Whether steps that don't wait for one another run at the same time."""

    @property
    def gpu_hour_price(self) -> float | None:
        """Where it's known."""

    def processes(self, step: Step) -> int:
        """Of a step, on all its nodes."""

    def gpus(self, step: Step) -> int:
        """That its job holds."""


@dataclass(frozen=True)
class ThisMachine:
    """One step after another."""

    gpu: GpuName | None = None
    side_by_side: bool = False
    gpu_hour_price: float | None = None

    @classmethod
    def found(cls) -> ThisMachine:
        """With the kind of its GPUs, as far as that is known."""
        return cls(_gpu_here())

    @property
    def description(self) -> object:
        """Its name and GPUs."""
        return [socket.gethostname(), self.gpu, len(visible_gpus())]

    def processes(self, step: Step) -> int:
        """Of a step."""
        match step.processes:
            case Ranks(world_size):
                return world_size
            case Replicas() as replicas:
                return replica_count(replicas)
        return 1

    def gpus(self, step: Step) -> int:
        """That the step uses."""
        match step.processes if self.gpu else None:
            case Ranks(world_size):
                return world_size
            case Replicas(_, gpus_each):
                return gpus_each * self.processes(step)
        return 0


class ClusterNodes:
    """Jobs on a cluster."""

    side_by_side = True

    def __init__(self, recipe: Recipe, cluster: ClusterConfig) -> None:
        self._recipe, self._cluster = recipe, cluster
        self.gpu: GpuName | None = cluster.gpu if cluster.gpus_per_node else None
        self.gpu_hour_price = cluster.gpu_hour_price
        self.description: object = cluster.model_dump(mode="json", exclude={"gpu_hour_price", "account", "secrets"})

    def processes(self, step: Step) -> int:
        """Of a step, on all its nodes."""
        resources = job_resources(self._recipe, step, self._cluster.gpus_per_node)
        return resources.nodes * resources.processes_per_node

    def gpus(self, step: Step) -> int:
        """Of the job's nodes."""
        resources = job_resources(self._recipe, step, self._cluster.gpus_per_node)
        return resources.nodes * resources.gpus_per_node


def _gpu_here() -> GpuName | None:
    """None without one, and for a GPU of another kind."""
    name = (gpu_model() or "").lower()
    return next((gpu for gpu in GPU_SPECS if gpu in name), None)

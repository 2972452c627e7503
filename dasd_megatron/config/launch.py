"""Where and how wide steps run: `launch`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from dasd_megatron.config.base import Config, NonNegative, Overrides, Positive, TimeLimit, overrides_of

# The part of the launch section that a step kind's jobs take their resources from.
NodeGroup = Literal["training", "sampling", "data"]


class ResourcesConfig(Config):
    """What a step's job gets on a cluster. Without effect on one machine."""

    nodes: Positive | None = None
    """By default one; for training, as many as its layout (`parallel`) fills."""

    gpus_per_node: NonNegative | None = None
    """By default the cluster's; 0 for data steps."""

    cpus_per_node: Positive | None = None
    """By default a job with GPUs has its nodes' CPUs and memory to itself, another what its partition gives."""

    memory_per_node: str | None = None
    """As Slurm writes it, for example 512G."""

    time: TimeLimit = "04:00:00"
    """Slurm's limit. A step that reaches it is saved, and queued again until it is done."""

    image: str = "training"
    """Which of the cluster's images."""


class SamplingResourcesConfig(ResourcesConfig):
    """Of steps that run an engine: sample, score, rollout, continue, evaluate."""

    image: str = "sampling"
    """Which of the cluster's images; by default `training` for a step whose engine is megatron."""


class DataResourcesConfig(ResourcesConfig):
    """Of steps without a GPU: prompts, filter, select, pack, import, export, report."""

    gpus_per_node: NonNegative | None = 0
    """0: they need none."""


if TYPE_CHECKING:
    ResourceOverrides = Overrides
else:
    ResourceOverrides = overrides_of(ResourcesConfig)


class LaunchConfig(Config):
    """Where and how wide steps run. Never changes a result."""

    replicas: Positive | None = None
    """Engines side by side on a machine; by default as many as there are GPUs for (engine.tensor_parallel), one without GPUs."""

    threads: Positive = 1
    """Threads of each process; on shared CPU cores more than one is slower."""

    training: ResourcesConfig = ResourcesConfig()
    """Jobs of training stages."""

    sampling: SamplingResourcesConfig = SamplingResourcesConfig()
    """Jobs of steps that run an engine."""

    data: DataResourcesConfig = DataResourcesConfig()
    """Jobs of steps without a GPU; filter, select and pack have a process for each CPU of theirs."""

    steps: dict[str, ResourceOverrides] = {}
    """Keys of these that differ in a single step, by the step's name: `{sample_high_temperature: {nodes: 8}}`."""

    grace_period_seconds: Positive = 300
    """Seconds before the time limit when training is told to save: longer than one optimizer step and one save take. Where
    metrics.jsonl and saves.jsonl show that they take longer, it is told earlier."""

    retries: NonNegative = 3
    """Times in a row that a job may crash (a lost node, an NCCL error) without having got further, before it counts as failed."""

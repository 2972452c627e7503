"""What steps that run an engine share: their config, how they are split into replicas, and how long they take."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import TypeVar

from dasd_megatron.config.base import ExecutionOnly, Positive
from dasd_megatron.config.gpu_specs import GPU_SPECS, GpuName
from dasd_megatron.config.launch import NodeGroup
from dasd_megatron.config.sampling import EngineConfig
from dasd_megatron.models.flops import hours
from dasd_megatron.sampling.decoding_speed import tokens_per_second, weight_bytes
from dasd_megatron.sampling.engines.engine import Engine
from dasd_megatron.sampling.engines.registry import load_engine
from dasd_megatron.steps.cost_estimate import Documents, InputEstimates, model_shape
from dasd_megatron.steps.step import Replicas, ShardedStepKind, StepConfig, StepContext


class EngineStepConfig(StepConfig):
    """Config of a step that runs an engine on its input `model`."""

    engine: EngineConfig = EngineConfig()
    replicas: ExecutionOnly[Positive | None] = None


E = TypeVar("E", bound=EngineStepConfig)


@dataclass(frozen=True)
class EngineWork:
    """What an engine step does, for an estimate.

    Attributes:
        scored: documents that a forward pass goes over; None for none.
        decoded: documents whose responses are written; None for none.
    """

    scored: Documents | None = None
    decoded: Documents | None = None


@dataclass(frozen=True)
class EngineHours:
    """Of an engine step, by what limits them.

    Attributes:
        computing: FLOP/s, in forward passes over prompts and what is scored.
        decoding: memory bandwidth.
    """

    computing: float = 0.0
    decoding: float = 0.0


class EngineStepKind(ShardedStepKind[E]):
    """A step whose shards are shared out among engine replicas."""

    def runs_elsewhere(self, config: E) -> bool:
        """Whether servers that are there already do all the work."""
        return config.engine.runs_elsewhere

    @abstractmethod
    def work(self, config: E, inputs: InputEstimates) -> EngineWork:
        """What the engine will have to do."""

    def group(self, config: E) -> NodeGroup:
        """Without a GPU where servers elsewhere do the work."""
        return "data" if self.runs_elsewhere(config) else "sampling"

    def processes(self, config: E) -> Replicas | None:
        """Replicas, each with the GPUs of one engine; one process where servers elsewhere do the work."""
        if self.runs_elsewhere(config):
            return None
        return Replicas(config.replicas, config.engine.gpus)

    def image(self, config: E) -> str | None:
        """Of the engine `megatron` training's, which has Transformer Engine."""
        return "training" if config.engine.name == "megatron" else None

    def hours(self, config: E, inputs: InputEstimates, gpu: GpuName | None, processes: int) -> float | None:
        """Nothing is known of servers elsewhere."""
        if gpu is None or self.runs_elsewhere(config):
            return None
        found = self.hours_by_limit(config, inputs, gpu, processes)
        return found.computing + found.decoding

    def hours_by_limit(self, config: E, inputs: InputEstimates, gpu: GpuName, processes: int) -> EngineHours:
        """Forward passes, limited by FLOP/s, and then decoding, limited by memory bandwidth (decoding_speed.py), shared out
        among the engines that get a shard. Those are full to the end, where they wait for the last ones' longest responses."""
        expected, shards = inputs.expected, inputs.own_shards()
        folder = inputs.model_folder("model")
        shape, engines = model_shape(folder), min(processes, shards)
        work = self.work(config, inputs)
        flops = 0.0 if work.scored is None else work.scored.flops(shape)
        decoding = 0.0
        if work.decoded is not None:
            asked = work.decoded
            flops += replace(asked, response=0.0, spread=1.0).flops(shape)
            rate = tokens_per_second(
                shape,
                weight_bytes(folder, shape, config.engine),
                config.engine,
                GPU_SPECS[gpu],
                length=asked.length_while_written,
                sequences=asked.count / engines,
                mbu=expected.mbu,
            )
            decoding = asked.count * asked.response / (engines * rate) / 3600
        gpus = engines * config.engine.gpus
        return EngineHours(hours(flops / 3, gpus, gpu, expected.mfu), decoding)  # a forward pass is a third


def open_engine(context: StepContext[E]) -> Engine:
    """The engine of an engine step, with the model that is the step's input `model`."""
    return load_engine(context.inputs["model"], context.config.engine)

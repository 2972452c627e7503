"""What the steps of curation share: they run on CPU cores, as many processes as their input is worth."""

from __future__ import annotations

import math
from typing import ClassVar, TypeVar

from dasd_megatron.config.gpu_specs import GpuName
from dasd_megatron.steps.cost_estimate import InputEstimates
from dasd_megatron.steps.step import Replicas, ShardByShardKind, StepConfig, StepContext

C = TypeVar("C", bound=StepConfig)
# Of an input, on disk, that one more process is worth: starting one takes seconds.
PROCESS_BYTES = 16 << 20


class DataStepKind(ShardByShardKind[C]):
    """A step whose shards are shared out among a machine's cores."""

    # Of what it reads, on one core (benchmarks/curation.py).
    tokens_per_second: ClassVar[float]

    def processes(self, config: C) -> Replicas:
        """One for each core."""
        return Replicas(count=None, gpus_each=0)

    def useful_processes(self, context: StepContext[C]) -> int:
        """By the size of the responses that it reads."""
        size = sum(shard["bytes"] for shard in context.artifact("responses").shards("responses"))
        return math.ceil(size / PROCESS_BYTES) or 1

    def hours(self, config: C, inputs: InputEstimates, gpu: GpuName | None, processes: int) -> float:
        """By the tokens that it reads, shared out among the processes that get a shard."""
        tokens = self.cost(config, inputs).tokens_in or 0.0
        return tokens / (self.tokens_per_second * min(processes, inputs.own_shards())) / 3600

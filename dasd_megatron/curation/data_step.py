"""What the steps of curation share: they run on CPU cores, as many processes as their input is worth."""

from __future__ import annotations

import math
from typing import TypeVar

from dasd_megatron.steps.step import Replicas, ShardedStepKind, StepConfig, StepContext

C = TypeVar("C", bound=StepConfig)
# Of an input, on disk, that one more process is worth: starting one takes seconds.
PROCESS_BYTES = 16 << 20


class DataStepKind(ShardedStepKind[C]):
    """A step whose shards are shared out among a machine's cores."""

    def processes(self, config: C) -> Replicas:
        """One for each core."""
        return Replicas(count=None, gpus_each=0)

    def useful_processes(self, context: StepContext[C]) -> int:
        """By the size of the responses that it reads."""
        size = sum(shard["bytes"] for shard in context.artifact("responses").shards("responses"))
        return math.ceil(size / PROCESS_BYTES) or 1

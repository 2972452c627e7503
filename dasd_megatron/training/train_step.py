"""Step `train`: what it needs and what it costs. How it trains is in stage.py, which a dry run doesn't load."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dasd_megatron.config.gpu_specs import GpuName
from dasd_megatron.config.launch import NodeGroup
from dasd_megatron.models.flops import fp8_share, hours
from dasd_megatron.steps.cost_estimate import Cost, InputEstimates
from dasd_megatron.steps.step import Ranks, StepContext, StepKind
from dasd_megatron.training.gpu_environment import gpu_environment
from dasd_megatron.training.train_step_config import TrainConfig


class TrainStep(StepKind[TrainConfig]):
    """Reads `packs`, starts from the checkpoint of `start`, and knows the student's config from `model`."""

    name = "train"

    def run(self, context: StepContext[TrainConfig]) -> dict[str, Any]:
        """Trains the stage, on every rank."""
        from dasd_megatron.training.stage import train

        return train(context)

    def group(self, config: TrainConfig) -> NodeGroup:
        """Nodes for training."""
        return "training"

    def environment(self, config: TrainConfig) -> Mapping[str, str]:
        """Settings of torch's allocator and CUDA's queues, of which nothing is read without a GPU."""
        return gpu_environment(config.parallel, os.environ)

    def processes(self, config: TrainConfig) -> Ranks:
        """The ranks of the parallel layout."""
        return Ranks(config.parallel.world_size, str(config.parallel))

    def cost(self, config: TrainConfig, inputs: InputEstimates) -> Cost:
        """Tokens trained on in all epochs, and the checkpoints."""
        packs, training = inputs.packs("packs"), config.training
        steps = training.total_steps(packs.count)
        tokens = steps * training.global_batch * packs.tokens / packs.count
        cost = Cost(steps, "steps", tokens_in=tokens, trains=True, counted=inputs.is_counted("packs"))
        weights = inputs.student_bytes()
        if weights is None:
            return cost
        # With two moments in fp32, and fp32 master weights beside weights in bf16.
        checkpoint = weights * (14 / 2 if training.precision == "bf16" else 12 / 4)
        kept = (steps - 1) // training.keep_every * checkpoint if training.keep_every else 0.0
        return replace(cost, bytes=weights + kept, checkpoint_bytes=training.keep_checkpoints * checkpoint)

    def hours(self, config: TrainConfig, inputs: InputEstimates, gpu: GpuName | None, processes: int) -> float | None:
        """By FLOPs, of the layout's ranks."""
        if gpu is None:
            return None
        packs, training = inputs.packs("packs"), config.training
        shape = inputs.student_shape()
        flops = packs.flops(shape, config.isolate_documents)
        share = fp8_share(shape, packs.tokens, flops, training)
        flops *= training.total_steps(packs.count) * training.global_batch / packs.count
        return hours(flops, config.parallel.world_size, gpu, inputs.expected.mfu, share)

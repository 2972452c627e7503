"""How long an optimizer step takes in a layout, by arithmetic: to compare layouts before there is a GPU. No torch.

Nothing here was measured: data sheets, and assumptions that are named. Ranks lie as Megatron orders them: tensor, context, data,
pipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from dasd_megatron.config.gpu_specs import GPU_SPECS, GPUS_PER_NODE, GpuName, GpuSpec
from dasd_megatron.config.training import MemoryConfig, ParallelConfig, TrainingConfig
from dasd_megatron.models.flops import fp8_share, training_flops
from dasd_megatron.models.parameter_count import Parameters, stage_parameters
from dasd_megatron.models.shape import ModelShape

# Share of the peak that kernels reach while they run.
KERNELS = 0.55
# Seconds in which the host starts a layer's kernels, forward and backward, and once more forward where it is recomputed.
STARTS, STARTS_AGAIN = 1.4e-3, 0.6e-3
# Share of a link's bandwidth that collectives reach.
LINKS = 0.7


@dataclass(frozen=True)
class StepTime:
    """Seconds of one optimizer step.

    Attributes:
        layers: computing, or waiting for the host where that takes longer.
        exchange: of tensor, context and expert parallelism, as far as nothing is computed meanwhile.
        bubble: pipeline stages that wait for one another.
        reduction: gradients over data-parallel ranks, and the weights back.
    """

    layers: float
    exchange: float
    bubble: float
    reduction: float

    @property
    def total(self) -> float:
        """In all."""
        return self.layers + self.exchange + self.bubble + self.reduction


def step_time(
    shape: ModelShape,
    parallel: ParallelConfig,
    training: TrainingConfig,
    memory: MemoryConfig,
    packs: Sequence[Sequence[int]],
    gpu: GpuName,
) -> StepTime:
    """Of packs like these (lengths of their documents)."""
    spec = GPU_SPECS[gpu]
    tokens = sum(map(sum, packs)) / len(packs)
    flops = sum(training_flops(shape, pack) for pack in packs) / len(packs)
    micro_batches = training.global_batch // parallel.data
    layers = _layers(shape, parallel, training, memory, tokens, flops, spec)
    exchange = _exchange(shape, parallel, memory, tokens, flops, spec)
    waits = (parallel.pipeline - 1) / parallel.virtual_pipeline
    return StepTime(
        layers=micro_batches * layers,
        exchange=micro_batches * exchange,
        bubble=waits * (layers + exchange),
        reduction=_reduction(shape, parallel, spec),
    )


def _layers(
    shape: ModelShape,
    parallel: ParallelConfig,
    training: TrainingConfig,
    memory: MemoryConfig,
    tokens: float,
    flops: float,
    spec: GpuSpec,
) -> float:
    """Seconds of a micro-batch on the slowest pipeline stage, the last one: it has the head."""
    share = fp8_share(shape, tokens, flops, training)
    again, starts = 0.0, STARTS
    if memory.recompute == "full":
        layers = memory.recompute_layers or shape.layers
        part = min(1.0, layers * parallel.pipeline * parallel.virtual_pipeline / shape.layers)
        again, starts = part / 3, STARTS + part * STARTS_AGAIN
    elif memory.recompute == "selective":
        p = Parameters.of(shape)
        again = 2 * shape.layers * (shape.top_k * p.expert if shape.experts else p.mlp) * tokens / flops
        starts += STARTS_AGAIN / 3
    head = 6 * shape.vocabulary * shape.hidden * tokens
    own = ((1 + again) * flops - head) / parallel.pipeline + head
    seconds = own / (parallel.tensor * parallel.context) / (spec.peak(share) * KERNELS)
    return max(seconds, starts * shape.layers / parallel.pipeline)


def _exchange(
    shape: ModelShape, parallel: ParallelConfig, memory: MemoryConfig, tokens: float, flops: float, spec: GpuSpec
) -> float:
    """Seconds of a micro-batch on a pipeline stage; activations are of two bytes."""
    tensor, context, expert = parallel.tensor, parallel.context, parallel.expert
    own, layers = tokens / context, shape.layers / parallel.pipeline
    # With sequence parallelism 4 collectives forward, 6 backward.
    collectives = 10 + (4 if memory.recompute == "full" else 0)
    seconds = collectives * _moved(2 * own * shape.hidden, tensor) / _link(spec, tensor)
    link = _link(spec, tensor * context)
    keys_and_values = 2 * 2 * shape.query_groups * shape.head_dim / tensor * own
    if parallel.context_comm == "a2a" or shape.sinks:
        queries_and_outputs = 2 * 2 * shape.query_columns / tensor * own
        seconds += 2 * _moved(keys_and_values + queries_and_outputs, context) / link
    else:  # hidden behind attention, as far as that takes
        attention = (
            (flops - training_flops(shape, [1.0]) * tokens) / shape.layers / (tensor * context) / (spec.bf16 * KERNELS)
        )
        seconds += max(0.0, 3 * (context - 1) * keys_and_values / link - attention)
    if shape.experts:
        dispatched = 2 * own / tensor * shape.top_k * shape.hidden
        seconds += (6 if memory.recompute == "full" else 4) * _moved(dispatched, expert) / _link(spec, expert)
    return layers * seconds


def _reduction(shape: ModelShape, parallel: ParallelConfig, spec: GpuSpec) -> float:
    """Seconds a step: gradients in fp32 there, weights in bf16 back."""
    stages = range(parallel.pipeline)
    dense, experts = max((stage_parameters(shape, parallel, stage) for stage in stages), key=sum)
    replicas = parallel.data * parallel.context
    link = _link(spec, parallel.tensor * replicas)
    return 6 * (_moved(dense, replicas) + _moved(experts, parallel.tensor * replicas // parallel.expert)) / link


def _moved(size: float, ranks: int) -> float:
    """Of what a group of ranks exchanges in one collective, what leaves each of them."""
    return size * (ranks - 1) / ranks


def _link(spec: GpuSpec, span: int) -> float:
    """Bytes/s between ranks of a group that spans so many GPUs."""
    return LINKS * (spec.nvlink if span <= GPUS_PER_NODE else spec.network)

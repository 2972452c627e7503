"""Memory of each rank of a training stage, by part, before it runs. No torch.

Activations are counted tensor by tensor, as the layers save them for the backward pass: Transformer Engine's on a GPU, the
CPU backend's on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dasd_megatron.config.training import MemoryConfig, ParallelConfig, TrainingConfig
from dasd_megatron.models.loss_tiles import tile_tokens
from dasd_megatron.models.parameter_count import Parameters, stage_parameters
from dasd_megatron.models.shape import ModelShape

Backend = Literal["cpu", "gpu"]


@dataclass(frozen=True)
class RankMemory:
    """Bytes on the rank of a pipeline stage that needs most, by part."""

    parameters: int
    weights: float
    gradients: float
    optimizer: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        """Bytes in all."""
        return self.weights + self.gradients + self.optimizer + self.activations + self.logits


def rank_memory(
    shape: ModelShape,
    parallel: ParallelConfig,
    training: TrainingConfig,
    memory: MemoryConfig,
    tokens: int,
    backend: Backend,
) -> RankMemory:
    """The fullest rank's memory when micro-batches have `tokens` tokens (before any split over ranks)."""
    stages = [
        _stage_memory(shape, parallel, training, memory, tokens, backend, stage) for stage in range(parallel.pipeline)
    ]
    return max(stages, key=lambda stage: stage.total)


def _stage_memory(
    shape: ModelShape,
    parallel: ParallelConfig,
    training: TrainingConfig,
    memory: MemoryConfig,
    tokens: int,
    backend: Backend,
    stage: int,
) -> RankMemory:
    dense, experts = stage_parameters(shape, parallel, stage)
    half = training.precision == "bf16"
    size = 2 if half else 4
    # Adam's two moments in fp32, and fp32 master weights where the weights themselves are in bf16.
    state = 12 if half else 8
    dense_shards = parallel.data * parallel.context
    expert_shards = parallel.tensor * dense_shards // parallel.expert
    if not parallel.distributed_optimizer:
        dense_shards = expert_shards = 1
    optimizer = state * (dense / dense_shards + experts / expert_shards)
    if backend == "gpu":
        optimizer *= 1 - memory.offload_optimizer
    last = stage == parallel.pipeline - 1
    own_tokens = tokens / parallel.context
    logits = 0.0
    if last:
        rows = -(-shape.vocabulary // parallel.tensor)
        logits = 4 * min(own_tokens, tile_tokens(backend, rows)) * rows
        logits += size * own_tokens * shape.hidden  # the gradient of what goes into the head
    return RankMemory(
        parameters=dense + experts,
        weights=size * (dense + experts) + _fp8_weights(shape, parallel, training),
        gradients=4 * (dense + experts),
        optimizer=optimizer,
        activations=size * _activations(shape, parallel, training, memory, own_tokens, backend, stage),
        logits=logits,
    )


def _fp8_weights(shape: ModelShape, parallel: ParallelConfig, training: TrainingConfig) -> float:
    """Transformer Engine keeps what it has cast of layers' matrices, by rows and by columns, a byte each."""
    if training.fp8 is None:
        return 0.0
    p = Parameters.of(shape)
    layers = (shape.layers - 2 * training.fp8_bf16_layers) / parallel.pipeline
    mlp = 0 if shape.experts else p.mlp  # the router isn't in FP8
    return 2 * layers * ((p.attention + mlp) / parallel.tensor + shape.experts * p.expert / parallel.expert)


@dataclass(frozen=True)
class LayerActivations:
    """Elements that one layer saves for a token, by how tensor parallelism splits them.

    Attributes:
        sequence: split by sequence parallelism only.
        tensor: split over tensor-parallel ranks.
        selective: of both together, what remains with selective recomputation.
    """

    sequence: float
    tensor: float
    selective: tuple[float, float]


def layer_activations(shape: ModelShape, parallel: ParallelConfig, backend: Backend) -> LayerActivations:
    """What a layer saves for the backward pass."""
    hidden, queries, keys = shape.hidden, shape.query_columns, shape.query_groups * shape.head_dim
    inner, chosen = shape.ffn_hidden_size, shape.top_k
    if backend == "cpu":
        # Norms: input and normalised input (2 each), and what goes into the projections behind them.
        norms, outputs = 4 * hidden, 2 * hidden
        # Queries, keys, values and output of the attention, the output projection's input, rotary factors.
        attention = 3 * queries + 2 * keys + 4 * shape.head_dim + 2 * shape.heads
        if shape.qk_norm:
            attention += 3 * queries + 3 * keys
        # With biases gpt-oss's activation, which has two products more.
        mlp, expert = 5 * inner, (8 if shape.biases else 6) * inner + hidden
    else:
        # Transformer Engine: a fused norm and projection save the input and the normalised input.
        norms, outputs = 2 * hidden, 2 * hidden
        attention = 2 * queries + 2 * keys + (queries + 2 * keys if shape.qk_norm else 0)
        mlp, expert = 3 * inner, 3 * inner + hidden * (2 if parallel.expert > 1 else 1)
    dense_mlp = 0 if shape.experts else mlp
    sequence = norms + outputs + (chosen * expert if shape.experts else 0)
    # Recomputed: the MLP, or experts, whose tokens are kept. Transformer Engine's MLP begins with the norm.
    kept = chosen * hidden if shape.experts else -hidden if backend == "gpu" else 0
    selective = (norms + outputs + kept, attention)
    return LayerActivations(sequence, attention + dense_mlp, selective)


def _activations(
    shape: ModelShape,
    parallel: ParallelConfig,
    training: TrainingConfig,
    memory: MemoryConfig,
    tokens: float,
    backend: Backend,
    stage: int,
) -> float:
    """Elements saved on a rank of a pipeline stage, with what the backward pass of one layer adds."""
    layer = layer_activations(shape, parallel, backend)
    sequence_split = parallel.tensor if parallel.splits_sequence else 1
    whole = layer.sequence / sequence_split + layer.tensor / parallel.tensor
    selective = layer.selective[0] / sequence_split + layer.selective[1] / parallel.tensor
    layers = shape.layers // (parallel.pipeline * parallel.virtual_pipeline)  # of a model chunk
    boundary = shape.hidden / sequence_split
    if memory.recompute == "full":
        again = min(layers, memory.recompute_layers or layers)
        chunk, transient = again * boundary + (layers - again) * whole, whole
    elif memory.recompute == "selective":
        chunk, transient = layers * selective, whole - selective
    else:
        chunk, transient = layers * whole, 0.0
    transient += whole  # the gradients of one layer's activations
    if stage == parallel.pipeline - 1:
        transient += 3 * boundary + (shape.hidden - boundary)  # final norm, and the loss's input, gathered
    return tokens * (chunk * _chunks_in_flight(parallel, training, stage) + transient)


def _chunks_in_flight(parallel: ParallelConfig, training: TrainingConfig, stage: int) -> int:
    """Forward passes of a model chunk whose backward pass is still to come (schedules 1F1B and interleaved 1F1B)."""
    micro_batches = training.global_batch // parallel.data
    after = parallel.pipeline - stage - 1
    if parallel.virtual_pipeline == 1:
        return min(micro_batches, after + 1)
    warm_up = 2 * after + (parallel.virtual_pipeline - 1) * parallel.pipeline
    return min(micro_batches * parallel.virtual_pipeline, warm_up + 1)

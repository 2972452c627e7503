"""What a training stage will cost, before it runs: parameters, FLOPs, memory a rank by part, hours. No torch.

Activations are counted tensor by tensor, as the layers save them for the backward pass: Transformer Engine's on a GPU, the
reference layers' on a CPU.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from dasd_megatron.recipe.schema import Memory, Parallel, Training
from dasd_megatron.recipe.shape import Shape

Backend = Literal["cpu", "gpu"]

GpuName = Literal["a100", "h100", "h200", "b200"]


@dataclass(frozen=True)
class Gpu:
    """What a GPU can do.

    Attributes:
        bf16, fp8: dense peak of matrix products, in FLOP/s; None where it has no FP8.
        memory_gib: its memory, in GiB.
        bandwidth: of its memory, in bytes/s.
    """

    bf16: float
    fp8: float | None
    memory_gib: int
    bandwidth: float

    def peak(self, fp8: bool) -> float:
        """FLOP/s in bf16, or in FP8 where it has that."""
        return self.fp8 if fp8 and self.fp8 is not None else self.bf16


# NVIDIA's data sheets; A100 with 80 GB, all with SXM.
GPUS: dict[GpuName, Gpu] = {
    "a100": Gpu(312e12, None, 80, 2.0e12),
    "h100": Gpu(989e12, 1979e12, 80, 3.35e12),
    "h200": Gpu(989e12, 1979e12, 141, 4.8e12),
    "b200": Gpu(2250e12, 4500e12, 180, 8.0e12),
}
GIB = 1 << 30
# Logits of one chunk of the fused loss, see training/loss.py; two chunks live while one follows the other.
LOGITS_BYTES = 2 * 4 * (32 << 20)


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters.

    Attributes:
        embedding, head: rows of the padded vocabulary; a tied head has none of its own.
        attention: matrices of one layer.
        split_vectors: those vectors of one layer of which each tensor-parallel rank has its heads' part.
        vectors: norms and biases of one layer, those in `split_vectors` among them.
        feed_forward: of one layer; of a mixture of experts the router alone.
        expert: matrices of one expert.
        expert_vectors: biases of one expert.
    """

    embedding: int
    head: int
    attention: int
    split_vectors: int
    vectors: int
    feed_forward: int
    expert: int
    expert_vectors: int

    @classmethod
    def of(cls, shape: Shape, padded_vocabulary: int | None = None) -> Parameters:
        """From a model's sizes."""
        rows = (padded_vocabulary or shape.vocabulary) * shape.hidden
        mlp = 3 * shape.hidden * shape.feed_forward
        split = (shape.qkv_columns if shape.qkv_bias else 0) + (shape.heads if shape.sinks else 0)
        vectors = 2 * shape.hidden + (2 * shape.head_dim if shape.qk_norm else 0) + split
        return cls(
            embedding=rows,
            head=0 if shape.tied else rows,
            attention=shape.hidden * (shape.qkv_columns + shape.query_columns),
            split_vectors=split,
            # Biases of the attention's output and of the router.
            vectors=vectors + (shape.hidden + shape.experts if shape.biases else 0),
            feed_forward=shape.experts * shape.hidden if shape.experts else mlp,
            expert=mlp if shape.experts else 0,
            expert_vectors=shape.gate_up_columns + shape.hidden if shape.biases else 0,
        )


def parameter_count(shape: Shape) -> int:
    """Parameters of the whole model."""
    p = Parameters.of(shape)
    layer = p.attention + p.vectors + p.feed_forward + shape.experts * (p.expert + p.expert_vectors)
    return p.embedding + p.head + shape.layers * layer + shape.hidden


def training_flops(shape: Shape, document_lengths: Iterable[float]) -> float:
    """Model FLOPs of a forward and backward pass over these documents: three times the forward pass's matrix products.

    Attention counts the causal half of each document's square (not of the pack's), in layers with a window the band of it
    that the window leaves; recomputation doesn't count.
    """
    p = Parameters.of(shape)
    layer = p.attention + p.feed_forward + shape.chosen_experts * p.expert
    by_token = 2 * (shape.layers * layer + shape.vocabulary * shape.hidden)
    by_pair = 4 * shape.query_columns  # scores and their products with values
    total = 0.0
    for length in document_lengths:
        hidden = max(0, length - shape.window)  # keys that the last token doesn't see, in a layer with a window
        pairs = shape.layers * length**2 / 2 - shape.windowed_layers * hidden**2 / 2
        total += by_token * length + by_pair * pairs
    return 3.0 * total


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
    shape: Shape, parallel: Parallel, training: Training, memory: Memory, tokens: int, backend: Backend
) -> RankMemory:
    """The fullest rank's memory when micro-batches have `tokens` tokens (before any split over ranks)."""
    stages = [
        _stage_memory(shape, parallel, training, memory, tokens, backend, stage) for stage in range(parallel.pipeline)
    ]
    return max(stages, key=lambda stage: stage.total)


def stage_parameters(shape: Shape, parallel: Parallel, stage: int) -> tuple[int, int]:
    """Parameters on a rank of a pipeline stage: those outside experts, and those of experts."""
    rows = -(-shape.vocabulary // parallel.tensor) * parallel.tensor
    p = Parameters.of(shape, rows)
    layers, tensor = shape.layers // parallel.pipeline, parallel.tensor
    feed_forward = p.feed_forward if shape.experts else p.feed_forward // tensor  # every rank has the router
    elsewhere = p.split_vectors * (tensor - 1) // tensor
    dense = layers * (p.attention // tensor + p.vectors - elsewhere + feed_forward)
    first, last = stage == 0, stage == parallel.pipeline - 1
    if first:
        dense += p.embedding // tensor
    if last:
        dense += shape.hidden + p.head // tensor
        if shape.tied and not first:
            dense += p.embedding // tensor  # a copy of the embedding
    return dense, layers * (p.expert + p.expert_vectors) * (shape.experts // parallel.expert)


def _stage_memory(
    shape: Shape, parallel: Parallel, training: Training, memory: Memory, tokens: int, backend: Backend, stage: int
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
        logits = min(LOGITS_BYTES, 2 * 4 * own_tokens * rows)  # fp32
        # The gradients of the head's rows, and of what goes into it.
        logits += size * rows * shape.hidden + 4 * own_tokens * shape.hidden
    return RankMemory(
        parameters=dense + experts,
        weights=size * (dense + experts),
        gradients=4 * (dense + experts),
        optimizer=optimizer,
        activations=size * _activations(shape, parallel, training, memory, own_tokens, backend, stage),
        logits=logits,
    )


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


def layer_activations(shape: Shape, parallel: Parallel, backend: Backend) -> LayerActivations:
    """What a layer saves for the backward pass."""
    hidden, queries, keys = shape.hidden, shape.query_columns, shape.query_groups * shape.head_dim
    inner, chosen = shape.feed_forward, shape.chosen_experts
    if backend == "cpu":
        # Norms: input and normalised input (2 each), and what goes into the projections behind them.
        norms, outputs = 4 * hidden, 2 * hidden
        # Queries, keys, values and output of the attention, the output projection's input, rotary factors.
        attention = 3 * queries + 2 * keys + 4 * shape.head_dim + 2 * shape.heads
        if shape.qk_norm:
            attention += 3 * queries + 3 * keys
        # With biases gpt-oss's activation, which has one product more.
        mlp, expert = 5 * inner, (7 if shape.biases else 6) * inner + hidden
    else:
        # Transformer Engine: a fused norm and projection save the input and the normalised input.
        norms, outputs = 2 * hidden, 2 * hidden
        attention = 2 * queries + 2 * keys + (queries + 2 * keys if shape.qk_norm else 0)
        mlp, expert = 3 * inner, 3 * inner + hidden * (2 if parallel.expert > 1 else 1)
    feed_forward = 0 if shape.experts else mlp
    sequence = norms + outputs + (chosen * expert if shape.experts else 0)
    # Recomputed: the MLP or experts. Transformer Engine's MLP begins with the norm.
    selective = (norms + outputs - (hidden if backend == "gpu" and not shape.experts else 0), attention)
    return LayerActivations(sequence, attention + feed_forward, selective)


def _activations(
    shape: Shape,
    parallel: Parallel,
    training: Training,
    memory: Memory,
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


def _chunks_in_flight(parallel: Parallel, training: Training, stage: int) -> int:
    """Forward passes of a model chunk whose backward pass is still to come (schedules 1F1B and interleaved 1F1B)."""
    micro_batches = training.global_batch // parallel.data
    after = parallel.pipeline - stage - 1
    if parallel.virtual_pipeline == 1:
        return min(micro_batches, after + 1)
    warm_up = 2 * after + (parallel.virtual_pipeline - 1) * parallel.pipeline
    return min(micro_batches * parallel.virtual_pipeline, warm_up + 1)


def hours(flops: float, gpus: int, gpu: GpuName, fp8: bool, efficiency: float) -> float:
    """Time to compute so many model FLOPs at this share of the GPUs' peak in bf16 (in FP8 where it has that)."""
    return flops / (gpus * GPUS[gpu].peak(fp8) * efficiency) / 3600

"""How many parameters a model has, and each rank of a layout. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from dasd_megatron.config.training import ParallelConfig
from dasd_megatron.models.shape import ModelShape


@dataclass(frozen=True)
class Parameters:
    """Numbers of parameters.

    Attributes:
        embedding, head: rows of the padded vocabulary; a tied head has none of its own.
        attention: matrices of one layer.
        split_vectors: those vectors of one layer of which each tensor-parallel rank has its heads' part.
        vectors: norms and biases of one layer, those in `split_vectors` among them.
        mlp: of one layer; of a mixture of experts the router alone.
        expert: matrices of one expert.
        expert_vectors: biases of one expert.
    """

    embedding: int
    head: int
    attention: int
    split_vectors: int
    vectors: int
    mlp: int
    expert: int
    expert_vectors: int

    @classmethod
    def of(cls, shape: ModelShape, padded_vocabulary: int | None = None) -> Parameters:
        """From a model's sizes."""
        rows = (padded_vocabulary or shape.vocabulary) * shape.hidden
        mlp = 3 * shape.hidden * shape.ffn_hidden_size
        split = (shape.qkv_columns if shape.qkv_bias else 0) + (shape.heads if shape.sinks else 0)
        vectors = 2 * shape.hidden + (2 * shape.head_dim if shape.qk_norm else 0) + split
        return cls(
            embedding=rows,
            head=0 if shape.tied else rows,
            attention=shape.hidden * (shape.qkv_columns + shape.query_columns),
            split_vectors=split,
            # Biases of the attention's output and of the router.
            vectors=vectors + (shape.hidden + shape.experts if shape.biases else 0),
            mlp=shape.experts * shape.hidden if shape.experts else mlp,
            expert=mlp if shape.experts else 0,
            expert_vectors=shape.gate_up_columns + shape.hidden if shape.biases else 0,
        )


def parameter_count(shape: ModelShape) -> int:
    """Parameters of the whole model."""
    p = Parameters.of(shape)
    layer = p.attention + p.vectors + p.mlp + shape.experts * (p.expert + p.expert_vectors)
    return p.embedding + p.head + shape.layers * layer + shape.hidden


def stage_parameters(shape: ModelShape, parallel: ParallelConfig, stage: int) -> tuple[int, int]:
    """Parameters on a rank of a pipeline stage: those outside experts, and those of experts."""
    rows = -(-shape.vocabulary // parallel.tensor) * parallel.tensor
    p = Parameters.of(shape, rows)
    layers, tensor = shape.layers // parallel.pipeline, parallel.tensor
    mlp = p.mlp if shape.experts else p.mlp // tensor  # every rank has the router
    on_other_ranks = p.split_vectors * (tensor - 1) // tensor
    dense = layers * (p.attention // tensor + p.vectors - on_other_ranks + mlp)
    first, last = stage == 0, stage == parallel.pipeline - 1
    if first:
        dense += p.embedding // tensor
    if last:
        dense += shape.hidden + p.head // tensor
        if shape.tied and not first:
            dense += p.embedding // tensor  # a copy of the embedding
    return dense, layers * (p.expert + p.expert_vectors) * (shape.experts // parallel.expert)

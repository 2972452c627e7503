"""Which parallel layouts a model can be trained in. No torch: a recipe is checked before anything starts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import groupby, product
from pathlib import Path
from typing import Any

from dasd_megatron.config.training import MemoryConfig, ParallelConfig, TrainingConfig
from dasd_megatron.models.hf_config import shape_of
from dasd_megatron.models.shape import ModelShape
from dasd_megatron.utils.errors import UserError

# What all dimensions of a matrix product in FP8 must divide by, after the split over ranks: as many elements share a scale.
FP8_MULTIPLE = {"delayed": 16, "tensorwise": 16, "blockwise": 128, "mxfp8": 32}
# Layouts that a refusal names.
SUGGESTIONS = 3


def check_layout(
    config: Mapping[str, Any],
    folder: Path,
    parallel: ParallelConfig,
    training: TrainingConfig,
    memory: MemoryConfig,
    context_length: int,
) -> None:
    """Raises UserError when the model, packs, batch or precision can't be split as `parallel` says; names layouts that can.

    Or when a setting of `training` or `memory` goes with no model or layout like this.
    """
    model = shape_of(config, folder)
    problem = layout_problem(model, parallel, training, context_length)
    if problem is not None:
        nearest = " | ".join(map(str, nearest_layouts(model, parallel, training, context_length)))
        raise UserError(f"parallel: {problem} ({folder}); layouts that work: {nearest}")
    setting = setting_problem(model, parallel, training, memory)
    if setting is not None:
        raise UserError(f"{setting} ({folder})")


def layout_problem(
    model: ModelShape, parallel: ParallelConfig, training: TrainingConfig, context_length: int
) -> str | None:
    """Why the model, packs or batch can't be split as `parallel` says; None where they can."""
    return next(_problems(model, parallel, training, context_length), None)


def setting_problem(
    model: ModelShape, parallel: ParallelConfig, training: TrainingConfig, memory: MemoryConfig
) -> str | None:
    """Which setting goes with no model or layout like this, and why; None where all do."""
    return next(_setting_problems(model, parallel, training, memory), None)


def nearest_layouts(
    model: ModelShape, parallel: ParallelConfig, training: TrainingConfig, context_length: int
) -> list[ParallelConfig]:
    """Possible layouts of as many ranks as can be used, nearest to `parallel`: with the fewest sizes changed."""
    names = ("tensor", "pipeline", "context", "data", "virtual_pipeline", "expert")
    asked = [getattr(parallel, name) for name in names]
    ranks = parallel.world_size
    limits = (model.query_groups, model.layers, context_length // 2, training.global_batch)
    splits = [split for split in product(*(_sizes(ranks, limit) for limit in limits)) if math.prod(split) <= ranks]
    chunks = sorted({1, 2, 4, min(parallel.virtual_pipeline, model.layers)})
    experts = _sizes(ranks, max(1, model.experts))
    for _, group in groupby(sorted(splits, key=math.prod, reverse=True), key=math.prod):
        found = []
        for sizes in (split + rest for split in group for rest in product(chunks, experts)):
            layout = parallel.model_copy(update={**dict(zip(names, sizes, strict=True)), "sequence": True})
            if not any(_problems(model, layout, training, context_length)):
                distance = sum(abs(math.log2(new / old)) for new, old in zip(sizes, asked, strict=True))
                found.append((distance, sizes, layout))
        if found:
            return [layout for *_, layout in sorted(found, key=lambda item: item[:2])[:SUGGESTIONS]]
    return []


def _sizes(ranks: int, limit: int) -> list[int]:
    """Sizes worth a try: powers of two, and what divides the ranks."""
    return [n for n in range(1, min(ranks, limit) + 1) if ranks % n == 0 or n & (n - 1) == 0]


def _problems(
    model: ModelShape, parallel: ParallelConfig, training: TrainingConfig, context_length: int
) -> Iterator[str]:
    """What is wrong with a layout, one sentence each."""
    if 2 * parallel.context > context_length:
        yield f"context={parallel.context} splits packs of {context_length} tokens into less than two chunks a rank"
    tensor, stages = parallel.tensor, parallel.pipeline * parallel.virtual_pipeline
    for name, number in (
        ("attention heads", model.heads),
        ("key-value heads", model.query_groups),
        ("columns of the feed-forward layer", 0 if model.experts else model.ffn_hidden_size),
    ):
        if number % tensor:
            yield f"tensor={tensor} doesn't divide the {number} {name}"
    # Transformer Engine exchanges heads for tokens where attention has sinks.
    exchanges_heads = parallel.context > 1 and (model.sinks or parallel.context_comm == "a2a")
    if exchanges_heads and model.query_groups % (tensor * parallel.context):
        needs = "attention with sinks" if model.sinks else "context_comm: a2a"
        yield (
            f"context={parallel.context} x tensor={tensor} doesn't divide the {model.query_groups} key-value heads, which "
            f"{needs} needs"
        )
    if model.layers % stages:
        chunks = f" x virtual_pipeline={parallel.virtual_pipeline}" if parallel.virtual_pipeline > 1 else ""
        yield f"pipeline={parallel.pipeline}{chunks} doesn't divide the {model.layers} layers"
    if parallel.virtual_pipeline > 1 and parallel.pipeline == 1:
        yield f"virtual_pipeline={parallel.virtual_pipeline} needs pipeline of 2 or more"
    batch = training.global_batch
    if batch % parallel.data:
        yield f"data={parallel.data} doesn't divide training.global_batch={batch}"
    elif parallel.virtual_pipeline > 1 and (batch // parallel.data) % parallel.pipeline:
        yield (
            f"virtual_pipeline={parallel.virtual_pipeline} needs the {batch // parallel.data} micro-batches of a data rank "
            f"(training.global_batch={batch} / data={parallel.data}) to divide by pipeline={parallel.pipeline}"
        )
    yield from _expert_problems(model, parallel)
    if training.fp8 is not None and not any(_fp8_problems(model, 1, training.fp8)):
        yield from _fp8_problems(model, parallel.tensor, training.fp8)


def _setting_problems(
    model: ModelShape, parallel: ParallelConfig, training: TrainingConfig, memory: MemoryConfig
) -> Iterator[str]:
    """Settings that this model or layout can't be trained with."""
    if training.moe_aux_loss_coeff is not None and not model.experts:
        yield f"training.moe_aux_loss_coeff={training.moe_aux_loss_coeff} needs a mixture of experts; this model has none"
    if 2 * training.fp8_bf16_layers >= model.layers:
        yield f"training.fp8_bf16_layers={training.fp8_bf16_layers} at each end leaves none of {model.layers} layers in FP8"
    if training.fp8 is not None:  # in any layout
        yield from (f"{problem}; choose another, or null" for problem in _fp8_problems(model, 1, training.fp8))
    chunk = model.layers // (parallel.pipeline * parallel.virtual_pipeline)
    if memory.recompute_layers is not None and memory.recompute_layers > chunk:
        yield f"memory.recompute_layers={memory.recompute_layers}, but a model chunk has {chunk} layers"
    if memory.offload_optimizer and training.precision != "bf16":  # Megatron would fail
        yield f"memory.offload_optimizer={memory.offload_optimizer} needs training.precision: bf16, not {training.precision}"
    if memory.offload_optimizer and not parallel.distributed_optimizer:
        yield f"memory.offload_optimizer={memory.offload_optimizer} needs parallel.distributed_optimizer: true"


def _expert_problems(model: ModelShape, parallel: ParallelConfig) -> Iterator[str]:
    if not model.experts:
        if parallel.expert > 1:
            yield f"expert={parallel.expert} needs a mixture of experts, and this model has none"
        return
    if model.experts % parallel.expert:
        yield f"expert={parallel.expert} doesn't divide the {model.experts} experts"
    ranks = parallel.tensor * parallel.context * parallel.data
    if ranks % parallel.expert:
        yield f"expert={parallel.expert} doesn't divide the {ranks} ranks of a pipeline stage (tensor x context x data)"
    if parallel.tensor > 1 and not parallel.sequence:
        yield f"tensor={parallel.tensor} with a mixture of experts needs sequence: true"


def _fp8_problems(model: ModelShape, tensor: int, fp8: str) -> Iterator[str]:
    multiple = FP8_MULTIPLE[fp8]
    for name, number, split in (
        ("hidden size", model.hidden, 1),
        ("feed-forward size", model.ffn_hidden_size, 1 if model.experts else tensor),
        ("attention width", model.query_columns, tensor),
    ):
        if number % (multiple * split):
            each = f" / tensor={split}" if split > 1 else ""
            yield f"training.fp8={fp8} needs the {name} {number}{each} to divide by {multiple}"

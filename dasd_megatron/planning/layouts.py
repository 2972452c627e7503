"""Layouts in which a stage fits a number of GPUs, the fastest first. No torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import get_args

from dasd_megatron.config.gpu_specs import GIB, GPU_SPECS, GPUS_PER_NODE, GpuName
from dasd_megatron.config.training import MemoryConfig, ParallelConfig, TrainingConfig
from dasd_megatron.models.pack_padding import alignment, document_slots
from dasd_megatron.models.parallel_layout import layout_problem, setting_problem
from dasd_megatron.models.shape import ModelShape
from dasd_megatron.planning.memory_estimate import RankMemory, rank_memory
from dasd_megatron.planning.step_time import StepTime, step_time

# Of a GPU's memory: the rest is for communication, fragmentation, and experts that are chosen more often than others.
USABLE = 0.83
# Times that differ by less than this share count as the same.
ALIKE = 0.01


@dataclass(frozen=True)
class FittingLayout:
    """A layout with its recomputation, its fullest rank's memory, and the time of a step."""

    parallel: ParallelConfig
    memory_config: MemoryConfig
    memory: RankMemory
    time: StepTime


def fitting_layouts(
    shape: ModelShape,
    parallel: ParallelConfig,
    training: TrainingConfig,
    memory: MemoryConfig,
    packs: Sequence[Sequence[int]],
    context_length: int,
    gpus: int,
    gpu: GpuName,
) -> list[FittingLayout]:
    """Of each division of the GPUs the fastest that fits, the fastest first.

    Of what takes the same time that comes first which splits the model in fewer ways, splits documents less, and is leaner.
    What isn't about the division is as `parallel` and `memory` have it.
    """
    best: dict[tuple[int, ...], FittingLayout] = {}
    for layout, recompute in product(_layouts(shape, parallel, gpus), _recomputations(memory)):
        if layout_problem(shape, layout, training, context_length) or setting_problem(
            shape, layout, training, recompute
        ):
            continue
        align = alignment(layout, training.fp8)
        longest = max(sum(document_slots(list(pack), align)) for pack in packs)
        needed = rank_memory(shape, layout, training, recompute, longest, "gpu")
        if needed.total > USABLE * GPU_SPECS[gpu].memory_gib * GIB:
            continue
        found = FittingLayout(layout, recompute, needed, step_time(shape, layout, training, recompute, packs, gpu))
        division = (layout.tensor, layout.context, layout.pipeline, layout.expert, layout.data)
        if division not in best or _order(found) < _order(best[division]):
            best[division] = found
    return sorted(best.values(), key=_order)


def possible_layouts(
    shape: ModelShape,
    parallel: ParallelConfig,
    training: TrainingConfig,
    memory: MemoryConfig,
    context_length: int,
    gpus: int,
) -> Iterator[tuple[ParallelConfig, MemoryConfig]]:
    """Those that the model, batch and precision can be split in, whatever they need."""
    for layout, recompute in product(_layouts(shape, parallel, gpus), _recomputations(memory)):
        problem = layout_problem(shape, layout, training, context_length)
        if problem is None and setting_problem(shape, layout, training, recompute) is None:
            yield layout, recompute


def _order(found: FittingLayout) -> tuple[int, int, int, float]:
    parallel = found.parallel
    splits = sum(size > 1 for size in (parallel.tensor, parallel.context, parallel.pipeline, parallel.expert))
    return round(math.log(found.time.total) / ALIKE), splits, parallel.context, found.memory.total


def _layouts(shape: ModelShape, parallel: ParallelConfig, gpus: int) -> Iterator[ParallelConfig]:
    """All divisions; tensor, pipeline and expert parallelism are no wider than a node."""
    sizes = [size for size in range(1, gpus + 1) if gpus % size == 0]
    in_node = [size for size in sizes if size <= GPUS_PER_NODE]
    for tensor, context, pipeline in product(in_node, sizes, in_node):
        ranks = tensor * context * pipeline
        if gpus % ranks:
            continue
        for chunks, expert, exchange in product(
            (1, 2, 4) if pipeline > 1 else (1,),
            in_node if shape.experts else (1,),
            get_args(ParallelConfig.model_fields["context_comm"].annotation) if context > 1 else ("p2p",),
        ):
            division = {
                "tensor": tensor,
                "context": context,
                "pipeline": pipeline,
                "data": gpus // ranks,
                "expert": expert,
            }
            changes = {**division, "virtual_pipeline": chunks, "context_comm": exchange, "sequence": True}
            yield parallel.model_copy(update=changes)


def _recomputations(memory: MemoryConfig) -> list[MemoryConfig]:
    return [
        memory.model_copy(update={"recompute": recompute, "recompute_layers": None})
        for recompute in ("none", "selective", "full")
    ]

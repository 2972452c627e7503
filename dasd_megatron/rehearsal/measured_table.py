"""What a rehearsal measured beside what a dry run plans with, as rows of a table. No torch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from dasd_megatron.config.gpu_specs import GIB, GPU_SPECS, GpuName
from dasd_megatron.config.recipe import Recipe
from dasd_megatron.config.sampling import EngineRole
from dasd_megatron.curation.worst_case_packs import worst_lengths
from dasd_megatron.models.flops import fp8_share, training_flops
from dasd_megatron.models.hf_config import read_config, shape_of
from dasd_megatron.models.pack_padding import alignment, document_slots
from dasd_megatron.planning.memory_estimate import Backend, rank_memory
from dasd_megatron.rehearsal.machines import Machines
from dasd_megatron.rehearsal.measurements import EngineSpeed, Measurements, TrainingSpeed
from dasd_megatron.sampling.decoding_speed import tokens_per_second, weight_bytes
from dasd_megatron.steps.cost_estimate import Unknown
from dasd_megatron.utils.errors import UserError

Row = tuple[str, str, str]


def measured_rows(recipe: Recipe, measured: Measurements, machines: Machines) -> list[Row]:
    """With a heading; the last column is empty where nothing is planned, or no GPU is known."""
    rows: list[Row] = [("", "measured", "planned")]
    for role, speed in measured.engines.items():
        if role != "scorer" or speed is not measured.engines.get("student"):  # else one engine does both
            rows += _of_engine(recipe, role, speed, machines.gpu)
    if measured.training is not None:
        rows += _of_training(recipe, measured.training, machines.gpu)
    return rows


def _of_engine(recipe: Recipe, role: EngineRole, speed: EngineSpeed, gpu: GpuName | None) -> Iterator[Row]:
    """Of one engine."""
    folder = recipe.teacher.model if role == "teacher" else recipe.student.model
    shape, engine, expected = shape_of(read_config(folder), folder), recipe.engine.of(role), recipe.expected
    known = gpu is not None and not engine.runs_elsewhere
    decodes = scores = ""
    if known and gpu is not None and speed.scored:
        forward = training_flops(shape, [speed.scored_length]) / 3 / speed.scored_length
        scores = _rate(engine.gpus * GPU_SPECS[gpu].peak() * expected.mfu / forward)
    if known and gpu is not None and speed.decoded:
        weights = weight_bytes(folder, shape, engine)
        with contextlib.suppress(Unknown, UserError):  # by the data sheet the weights don't fit, and they did
            planned = tokens_per_second(
                shape, weights, engine, GPU_SPECS[gpu], speed.length, speed.sequences, expected.mbu
            )
            decodes = _rate(planned)
    if speed.decoded:
        yield (f"{role}: decodes, an engine", _rate(speed.decoded), decodes)
        yield (f"{role}: sequences together, of (mean)", f"{speed.sequences:,} of {speed.length:,.0f} tokens", "")
    if speed.scored:
        yield (f"{role}: scores, an engine", _rate(speed.scored), scores)
    yield (f"{role}: longest sequence taken", f"{speed.longest:,} tokens", "")
    yield (f"{role}: starts in", f"{speed.startup:,.1f} s", "")
    yield (f"{role}: host memory, an engine", f"{speed.host_memory_gib:.2f} GiB", "")


def _of_training(recipe: Recipe, speed: TrainingSpeed, gpu: GpuName | None) -> Iterator[Row]:
    """Of the first stage, on packs of which every second one is a single document, and the others are very short ones."""
    shape = shape_of(read_config(recipe.student.model), recipe.student.model)
    training = recipe.stages[0].training.applied_to(recipe.training)
    rate = ""
    if gpu is not None:
        peak = GPU_SPECS[gpu].peak(fp8_share(shape, speed.tokens, speed.flops, training))
        rate = _rate(speed.tokens * recipe.parallel.world_size * peak * recipe.expected.mfu / speed.flops)
    yield ("training, on worst-case packs", _rate(speed.tokens), rate)
    if speed.mfu is not None:
        yield ("training: MFU", f"{speed.mfu:.1%}", f"{recipe.expected.mfu:.1%}")
    tensors = f"{_estimated_gib(recipe, gpu):.2f} GiB of tensors"
    yield ("training: memory of the fullest rank", f"{speed.memory_gib:.2f} GiB", tensors)
    yield ("training: host memory of a node's ranks", f"{speed.host_memory_gib:.2f} GiB", "")
    yield ("training: longest step", f"{speed.longest_step:.2f} s", "")
    grace_period = f"step and save within {recipe.launch.grace_period_seconds} s"
    yield ("training: longest save", f"{speed.longest_save:.2f} s", grace_period)
    yield ("training: starts in", f"{speed.startup:,.1f} s", "")


def _estimated_gib(recipe: Recipe, gpu: GpuName | None) -> float:
    """The estimate for the packs that were trained on."""
    shape, length = shape_of(read_config(recipe.student.model), recipe.student.model), recipe.packing.context_length
    training = recipe.stages[0].training.applied_to(recipe.training)
    align = alignment(recipe.parallel, training.fp8)
    longest = max(sum(document_slots(worst_lengths(length, number), align)) for number in range(2))
    backend: Backend = "cpu" if gpu is None else "gpu"
    return rank_memory(shape, recipe.parallel, training, recipe.memory, longest, backend).total / GIB


def _rate(tokens: float) -> str:
    return f"{tokens:,.0f} tokens/s"

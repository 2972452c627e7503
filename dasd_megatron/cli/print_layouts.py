"""The layouts in which a stage fits, as a table."""

from __future__ import annotations

import json

from rich.console import Console
from rich.table import Table

from dasd_megatron.cli.print_estimate import Workload
from dasd_megatron.config.gpu_specs import GIB, GPU_SPECS, GpuName, precision_problem
from dasd_megatron.config.recipe import Recipe
from dasd_megatron.config.stages import StageConfig
from dasd_megatron.config.training import ParallelConfig, TrainingConfig
from dasd_megatron.models.hf_config import read_config, shape_of
from dasd_megatron.models.parallel_layout import nearest_layouts
from dasd_megatron.models.shape import ModelShape
from dasd_megatron.planning.layouts import ALIKE, USABLE, FittingLayout, fitting_layouts, possible_layouts
from dasd_megatron.steps.step import Step
from dasd_megatron.utils.errors import UserError

ROWS = 10
QUOTE = '"'


def print_layouts(recipe: Recipe, stage: StageConfig, step: Step, gpus: int, gpu: GpuName) -> None:
    """Prints the fastest of them, with the overrides that choose them. Raises UserError where none fits."""
    training, spec = stage.training.applied_to(recipe.training), GPU_SPECS[gpu]
    shape = shape_of(read_config(recipe.student.model), recipe.student.model)
    problem = precision_problem(training, recipe.packing.context_length, spec.capability)
    if problem is not None:
        raise UserError(problem)
    work, length = Workload.of(step, recipe), recipe.packing.context_length
    found = fitting_layouts(shape, recipe.parallel, training, recipe.memory, work.packs, length, gpus, gpu)
    own = (recipe.parallel, recipe.memory)
    room = f"{USABLE:.0%} of {spec.memory_gib} GiB"
    if not found:
        raise UserError(f"{stage.name}: {_why_none(recipe, training, shape, gpus)} ({gpus} {gpu.upper()}, {room})")
    title = f"{stage.name} on {gpus} {gpu.upper()}: fits {room}; times by arithmetic, to compare (within {ALIKE:.0%}: the same)"
    table = Table(title=title, title_justify="left")
    for column in ("", "s/step", "layers", "exchange", "bubble", "reduction", "GiB"):
        table.add_column(column, justify="right")
    # And the recipe's own, wherever it is.
    shown = [
        (n, layout) for n, layout in enumerate(found, 1) if n <= ROWS or (layout.parallel, layout.memory_config) == own
    ]
    for number, layout in shown:
        time = layout.time
        seconds = (time.total, time.layers, time.exchange, time.bubble, time.reduction)
        table.add_row(str(number), *(f"{value:.3g}" for value in seconds), f"{layout.memory.total / GIB:.1f}")
    Console().print(table)
    for number, layout in shown:
        print(f"{number:>2}  {settings(layout, recipe) or 'as the recipe has it'}")


def settings(layout: FittingLayout, recipe: Recipe) -> str:
    """The overrides of this recipe that choose it."""
    sections = (("parallel", layout.parallel, recipe.parallel), ("memory", layout.memory_config, recipe.memory))
    return " ".join(
        f"{section}.{name}={json.dumps(value).strip(QUOTE)}"
        for section, chosen, own in sections
        for name, value in chosen.model_dump(mode="json").items()
        if value != own.model_dump(mode="json")[name]
    )


def _why_none(recipe: Recipe, training: TrainingConfig, shape: ModelShape, gpus: int) -> str:
    length, memory = recipe.packing.context_length, recipe.memory
    if not any(possible_layouts(shape, recipe.parallel, training, memory, length, gpus)):
        near = nearest_layouts(shape, ParallelConfig(data=gpus), training, length)
        others = " | ".join(f"{layout} ({layout.world_size} GPUs)" for layout in near)
        return f"the model and training.global_batch={training.global_batch} can't be divided so; nearest: {others}"
    offload = ", or set memory.offload_optimizer"
    can_offload = (
        training.precision == "bf16" and recipe.parallel.distributed_optimizer and memory.offload_optimizer < 1
    )
    return f"no layout fits; take more GPUs{offload if can_offload else ''}"

"""The layouts in which a stage fits, as a table."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from dasd_megatron.cli.print_estimate import Workload
from dasd_megatron.config.gpu_specs import GIB, GPU_SPECS, GpuName
from dasd_megatron.config.recipe import Recipe
from dasd_megatron.config.stages import StageConfig
from dasd_megatron.models.hf_config import read_config, shape_of
from dasd_megatron.planning.layouts import USABLE, FittingLayout, fitting_layouts
from dasd_megatron.steps.step import Step
from dasd_megatron.utils.errors import UserError

ROWS = 10


def print_layouts(recipe: Recipe, stage: StageConfig, step: Step, gpus: int, gpu: GpuName) -> None:
    """Prints the fastest of them. Raises UserError where none fits."""
    training = stage.training.applied_to(recipe.training)
    shape = shape_of(read_config(recipe.student.model), recipe.student.model)
    work, length = Workload.of(step, recipe), recipe.packing.context_length
    found = fitting_layouts(shape, recipe.parallel, training, recipe.memory, work.packs, length, gpus, gpu)
    room = f"{USABLE:.0%} of {GPU_SPECS[gpu].memory_gib} GiB"
    if not found:
        raise UserError(
            f"{stage.name}: no layout of {gpus} {gpu.upper()} fits {room}; take more GPUs, a batch that they divide "
            f"(training.global_batch={training.global_batch}), or set memory.offload_optimizer"
        )
    table = Table(
        title=f"{stage.name} on {gpus} {gpu.upper()}: fits {room}; times by arithmetic, to compare",
        title_justify="left",
    )
    for column in ("s/step", "layers", "exchange", "bubble", "reduction", "GiB"):
        table.add_column(column, justify="right")
    table.add_column("settings", overflow="fold")
    for layout in found[:ROWS]:
        time = layout.time
        seconds = (time.total, time.layers, time.exchange, time.bubble, time.reduction)
        table.add_row(*(f"{value:.3g}" for value in seconds), f"{layout.memory.total / GIB:.1f}", settings(layout))
    Console().print(table)


def settings(layout: FittingLayout) -> str:
    """The overrides that choose it."""
    parallel, defaults = layout.parallel.model_dump(), type(layout.parallel)().model_dump()
    names = ("tensor", "context", "context_comm", "pipeline", "virtual_pipeline", "expert", "data")
    chosen = [f"parallel.{name}={parallel[name]}" for name in names if parallel[name] != defaults[name]]
    return " ".join([*chosen, f"memory.recompute={layout.memory_config.recompute}"])

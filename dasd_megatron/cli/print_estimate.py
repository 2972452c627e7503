"""The estimate of a training stage, as tables."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from dasd_megatron.artifacts.artifact import Artifact, is_complete
from dasd_megatron.config.gpu_specs import GIB, GPU_SPECS, GpuName, precision_problem
from dasd_megatron.config.recipe import Recipe
from dasd_megatron.config.stages import StageConfig
from dasd_megatron.config.training import TrainingConfig
from dasd_megatron.models.flops import fp8_share, hours, training_flops
from dasd_megatron.models.hf_config import read_config, shape_of
from dasd_megatron.models.pack_padding import alignment, document_slots
from dasd_megatron.models.parameter_count import parameter_count
from dasd_megatron.planning.layouts import USABLE
from dasd_megatron.planning.memory_estimate import rank_memory
from dasd_megatron.steps.step import Step
from dasd_megatron.utils.errors import UserError

PARTS = ("weights", "gradients", "optimizer", "activations", "logits")


@dataclass(frozen=True)
class Workload:
    """What a stage trains on: its packs, or where they don't exist yet, packs of one document that fills the context."""

    packs: list[list[int]]
    known: bool

    @classmethod
    def of(cls, step: Step, recipe: Recipe) -> Workload:
        """From the stage's packs, if they are done."""
        folder = step.input_path("packs")
        if not is_complete(folder):
            return cls([[recipe.packing.context_length]], known=False)
        rows = Artifact(folder).rows("packs", ["document_lengths"])
        lengths = [row["document_lengths"] for row in rows]
        return cls(lengths if recipe.packing.isolate_documents else [[sum(pack)] for pack in lengths], known=True)


def print_estimate(recipe: Recipe, stage: StageConfig, step: Step, gpu: GpuName | None, mfu: float) -> None:
    """Prints parameters, tokens, FLOPs, memory a rank by part and, for a GPU, hours. Raises UserError where it can't do that."""
    training, parallel = stage.training.applied_to(recipe.training), recipe.parallel
    shape = shape_of(read_config(recipe.student.model), recipe.student.model)
    problem = (
        None if gpu is None else precision_problem(training, recipe.packing.context_length, GPU_SPECS[gpu].capability)
    )
    if problem is not None:
        raise UserError(problem)
    work = Workload.of(step, recipe)
    steps = _steps(training, work)
    # A step's mean cost; a stage's is that times its steps.
    tokens = training.global_batch * sum(map(sum, work.packs)) / len(work.packs)
    flops = training.global_batch * sum(training_flops(shape, pack) for pack in work.packs) / len(work.packs)
    align = alignment(parallel, training.fp8)
    longest = max(sum(document_slots(pack, align)) for pack in work.packs)
    memory = rank_memory(shape, parallel, training, recipe.memory, longest, "gpu" if gpu else "cpu")

    table = Table(title=f"{stage.name}: {parallel} ({parallel.world_size} ranks)", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    table.add_row("parameters", f"{parameter_count(shape):,}")
    table.add_row("packs", f"{len(work.packs):,}" if work.known else "not made yet: taken as full, one document each")
    table.add_row("steps", "known once packs are made" if steps is None else f"{steps:,}")
    table.add_row("tokens a step", f"{tokens:,.0f}")
    table.add_row("model FLOPs a step", f"{flops:.3g}")
    if steps is not None:
        table.add_row("tokens", f"{steps * tokens:,.0f}")
        table.add_row("model FLOPs", f"{steps * flops:.3g}")
    if gpu is not None:
        share = fp8_share(shape, tokens, flops, training)
        seconds = 3600 * hours(flops, parallel.world_size, gpu, mfu, share)
        at = f"at {mfu:.0%} MFU on {parallel.world_size} {gpu.upper()}"
        table.add_row(f"seconds a step {at}", f"{seconds:.3g}")
        if steps is not None:
            table.add_row(f"hours {at}", f"{steps * seconds / 3600:.3g}")
    Console().print(table)

    table = Table(title=f"memory of the fullest rank (packs of {longest:,} tokens)", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for part in PARTS:
        table.add_row(part, _size(getattr(memory, part)))
    table.add_section()
    table.add_row("in all", _size(memory.total))
    if gpu is not None:
        table.add_row(f"{gpu.upper()} has", f"{GPU_SPECS[gpu].memory_gib} GiB")
    Console().print(table)
    if gpu is not None and memory.total > USABLE * GPU_SPECS[gpu].memory_gib * GIB:
        print(
            f"That leaves less than {1 - USABLE:.0%} for communication and fragmentation: raise parallel.context, tensor or "
            "pipeline, or set memory.recompute"
        )


def _steps(training: TrainingConfig, work: Workload) -> int | None:
    """Steps of the stage; None where they depend on packs that aren't made yet."""
    if training.steps is None and not work.known:
        return None
    return training.total_steps(len(work.packs))


def _size(size: float) -> str:
    return f"{size / GIB:.2f} GiB" if size >= 0.1 * GIB else f"{size / 2**20:.1f} MiB"

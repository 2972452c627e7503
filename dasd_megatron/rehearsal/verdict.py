"""What a rehearsal ends with: what was measured beside what was planned, the corrected plan, and what to change. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import yaml

from dasd_megatron.config.gpu_specs import GPU_SPECS
from dasd_megatron.config.recipe import Recipe
from dasd_megatron.pipeline.graph import build_steps
from dasd_megatron.rehearsal.corrected_plan import (
    CorrectedPlan,
    StepPlan,
    corrected_expectations,
    from_start_to_end,
    with_seen_lengths,
)
from dasd_megatron.rehearsal.machines import Machines
from dasd_megatron.rehearsal.measured_table import measured_rows
from dasd_megatron.rehearsal.measurements import Measurements
from dasd_megatron.slurm.grace_period import MARGIN
from dasd_megatron.steps.step import Step
from dasd_megatron.utils.text_table import text_table

# Of a GPU's memory: a stage that takes more is one long document from its end.
FULL = 0.95


def print_verdict(recipe: Recipe, measured: Measurements, machines: Machines) -> int:
    """Prints it all. Returns the exit code: 0 where nothing has to be changed."""
    seen = with_seen_lengths(recipe, measured)
    steps = build_steps(seen)
    plans = CorrectedPlan(seen, measured, machines).of(steps)
    problems = list(_problems(recipe, measured, machines))
    print("\nmeasured\n")
    print("\n".join(text_table(measured_rows(recipe, measured, machines))))
    print("\nthe run by these measurements\n")
    print("\n".join(text_table(list(_plan(plans)))) + "\n")
    print("\n".join(_totals(steps, plans, machines)))
    print("\nto paste into the recipe, so that a dry run plans with it:\n")
    print(_section(corrected_expectations(seen, plans).model_dump(exclude_unset=True), seen))
    for problem in problems:
        print(f"to change: {problem}")
    print("verdict: " + ("change this before you start the run" if problems else "every step works"))
    return 2 if problems else 0


def _problems(recipe: Recipe, measured: Measurements, machines: Machines) -> Iterator[str]:
    """What worked here, and won't in the run."""
    training = measured.training
    if training is None:
        return
    needed = MARGIN * (training.longest_step + training.longest_save)
    if machines.side_by_side and needed > recipe.launch.grace_period_seconds:
        yield (
            f"a step takes up to {training.longest_step:.1f} s and a save {training.longest_save:.1f} s, but a stage is told to "
            f"stop {recipe.launch.grace_period_seconds} s before its time limit; set launch.grace_period_seconds to "
            f"{round(needed + 0.5)}"
        )
    if machines.gpu is not None:
        room = GPU_SPECS[machines.gpu].memory_gib
        if training.memory_gib > FULL * room:
            yield (
                f"a rank took {training.memory_gib:.1f} of {room} GiB; raise parallel.context, tensor or pipeline, or set "
                "memory.recompute"
            )


def _plan(plans: Mapping[str, StepPlan]) -> Iterator[Sequence[str]]:
    yield ("step", "takes", "of it to start", "a dry run has", "GPU-hours")
    for name, plan in plans.items():
        assumed = "" if plan.assumed is None else _clock(3600 * (plan.assumed.computing + plan.assumed.decoding))
        gpu_hours = f"{plan.gpus * plan.seconds / 3600:,.2f}" if plan.gpus else ""
        yield (name, _clock(plan.seconds), _clock(plan.startup), assumed, gpu_hours)


def _clock(seconds: float) -> str:
    """Hours:minutes:seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


def _totals(steps: Mapping[str, Step], plans: Mapping[str, StepPlan], machines: Machines) -> Iterator[str]:
    how = "where each step starts once what it reads is there" if machines.side_by_side else "one step after another"
    yield f"hours: {from_start_to_end(steps, plans, machines.side_by_side) / 3600:,.3f}, {how}"
    gpu_hours = sum(plan.gpus * plan.seconds for plan in plans.values()) / 3600
    if gpu_hours:
        price = machines.gpu_hour_price
        cost = "" if price is None else f"; at {price:g} a GPU-hour: {price * gpu_hours:,.2f}"
        yield f"GPU-hours: {gpu_hours:,.1f}{cost}"
    unknown = dict.fromkeys(plan.unknown for plan in plans.values() if plan.unknown is not None)
    if unknown:
        yield "the sums leave out what is unknown:"
        yield from (f"  {reason}" for reason in unknown)


def _section(expected: Mapping[str, object], recipe: Recipe) -> str:
    """As YAML; lengths of stages as a comment, since a recipe's stages may be written anywhere."""
    text = yaml.safe_dump({"expected": dict(expected)}, sort_keys=False)
    own = {stage.name: stage.expected_response_tokens for stage in recipe.stages if stage.kind == "sampled"}
    return text + "".join(
        f"# stages: {name}: expected_response_tokens: {count}\n" for name, count in own.items() if count
    )

"""The dry run of a submission: which steps would run, their jobs' scripts, and what they are estimated to cost."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from dasd_megatron.config.recipe import Recipe
from dasd_megatron.planning.costs import Costs
from dasd_megatron.planning.job_resources import time_limit
from dasd_megatron.runtime.git_source import ROOT, Source
from dasd_megatron.slurm.cluster_config import ClusterConfig
from dasd_megatron.slurm.experiment import StepJob, build
from dasd_megatron.steps.cost_estimate import Cost
from dasd_megatron.steps.step import Step
from dasd_megatron.utils.text_table import text_table

# Stands for the experiment's name, which has the time of submission in it.
EXPERIMENT = "{name}_TIME"
HEADER = (
    "step",
    "nodes x GPUs",
    "limit",
    "makes",
    "tokens in",
    "tokens out",
    "GPU-hours",
    "hours",
    "GB",
    "by",
    "after",
)
# Columns of words, which begin at the left; numbers end at the right.
WORDS = ("step", "by", "after")


def print_plan(recipe: Recipe, steps: Mapping[str, Step], jobs: Sequence[StepJob], cluster: ClusterConfig) -> None:
    """Prints scripts as they will run, then the plan and its costs. Needs no cluster."""
    for name, script in scripts(recipe, jobs, cluster).items():
        print(f"----- {name} -----\n{script.rstrip()}\n")
    if jobs:
        print("\n".join(plan(recipe, jobs, cluster)) + "\n")
    print(f"{sum(step.done for step in steps.values())} of {len(steps)} steps are done")


def scripts(recipe: Recipe, jobs: Sequence[StepJob], cluster: ClusterConfig) -> dict[str, str]:
    """The sbatch script of each job, by step."""
    with tempfile.TemporaryDirectory() as folder:
        experiment = EXPERIMENT.format(name=recipe.name)
        built = build(recipe, jobs, cluster, experiment, Source.of(ROOT) is not None, Path(folder))
        with built:
            built.dryrun(log=False, delete_exp_dir=False)
        made = Path(folder) / "experiments" / recipe.name / experiment
        return {job.name: (made / f"{job.name}_sbatch.sh").read_text() for job in jobs}


def plan(recipe: Recipe, jobs: Sequence[StepJob], cluster: ClusterConfig) -> list[str]:
    """The jobs with their costs as a table, the costs in all, and what was taken for granted; lines of text."""
    costs = Costs(recipe, cluster.gpu)
    planned = [(job, costs.of(job.step, job.resources)) for job in jobs]
    words = [HEADER.index(name) for name in WORDS]
    table = text_table([HEADER, *(_row(job, cost) for job, cost in planned)], words)
    return [*table, "", *_totals(planned), "", *_assumptions(recipe, cluster)]


def _row(job: StepJob, cost: Cost) -> tuple[str, ...]:
    by = "counts" if cost.counted else "expected" if cost.tokens_in is not None else ""
    return (
        job.step.name,
        f"{job.resources.nodes} x {job.resources.gpus_per_node}",
        time_limit(job.resources.time),
        "" if cost.amount is None else f"{cost.amount:,.0f} {cost.unit}",
        _number(cost.tokens_in, 1e6, " M"),
        _number(cost.tokens_out, 1e6, " M"),
        _number(cost.gpu_hours),
        _number(cost.hours),
        _number(cost.bytes, 1e9),
        by if cost.missing is None else "unknown",
        ", ".join(job.after),
    )


def _number(value: float | None, unit: float = 1.0, name: str = "") -> str:
    return "" if value is None else f"{value / unit:,.1f}{name}"


def _totals(planned: Sequence[tuple[StepJob, Cost]]) -> list[str]:
    """Costs in all, and what must be known for those that are missing."""
    hours = {
        group: sum(cost.gpu_hours or 0.0 for job, cost in planned if job.resources.group == group)
        for group in ("sampling", "training")
    }
    # What is only read, or passed on by a step without a GPU, was sampled before.
    written = sum(cost.tokens_out or 0.0 for job, cost in planned if cost.samples)
    asked = sum(cost.tokens_out or 0.0 for _, cost in planned if cost.evaluates)
    trained = sum(cost.tokens_in or 0.0 for job, cost in planned if cost.trains)
    stored = sum(cost.bytes or 0.0 for _, cost in planned)
    checkpoints = max((cost.checkpoint_bytes for _, cost in planned), default=0.0)
    lines = [
        f"tokens: {written / 1e6:,.1f} M sampled, {trained / 1e6:,.1f} M trained on, {asked / 1e6:,.1f} M in evaluation",
        f"GPU-hours: {sum(hours.values()):,.1f}; sampling, scoring and evaluation {hours['sampling']:,.1f}, training "
        f"{hours['training']:,.1f}",
        f"storage: {stored / 1e9:,.1f} GB, and up to {checkpoints / 1e9:,.1f} GB of checkpoints while a stage trains",
    ]
    longer = [
        f"{job.step.name} ({cost.hours / limit:.1f} times)"
        for job, cost in planned
        if cost.hours is not None and cost.hours > (limit := job.resources.time / 3600)
    ]
    if longer:
        lines.append(f"longer than the limit, so queued again to resume where it ended: {', '.join(longer)}")
    missing = dict.fromkeys(cost.missing for _, cost in planned if cost.missing is not None)
    if missing:
        lines.append("the sums leave out what is unknown:")
    return [*lines, *(f"  {reason}" for reason in missing)]


def _response_tokens(recipe: Recipe) -> str:
    own = [
        f"{stage.name} {stage.expected_response_tokens:,}"
        for stage in recipe.stages
        if stage.kind == "sampled" and stage.expected_response_tokens
    ]
    return f"{recipe.expected.response_tokens:,}" + (f" ({', '.join(own)})" if own else "")


def _assumptions(recipe: Recipe, cluster: ClusterConfig) -> list[str]:
    """Where the numbers come from."""
    expected = recipe.expected
    return [
        "by counts: what finished steps have counted. by expected: the recipe's section of this name, until they have:",
        f"  a prompt has {expected.prompt_tokens:,} tokens, a response {_response_tokens(recipe)}, squared "
        f"lengths {expected.length_spread:g} times the square of the mean;",
        f"  of a student's answers {expected.truncated_answers:.1%} are truncated, of their continuations "
        f"{expected.kept_continuations:.1%} kept",
        f"  {cluster.gpu.upper()}s reach {expected.mbu:.0%} of their memory bandwidth in decoding, and "
        f"{expected.mfu:.0%} of their FLOP/s in scoring and training: assumptions, not measurements",
        "GB are as compressed, and hours of filter, select and pack those of launch.data's nodes and CPUs, by what",
        "benchmarks/curation.py measures. GPU-hours are those of all GPUs that a job holds.",
    ]

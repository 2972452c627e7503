"""What a run asks of its engines, and what its rehearsal has to be like, apart from its data. No torch."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from dasd_megatron import versions
from dasd_megatron.config.gpu_specs import GPU_SPECS, GpuName
from dasd_megatron.config.recipe import Recipe
from dasd_megatron.config.rehearsal import RehearsalConfig
from dasd_megatron.config.sampling import EngineRole
from dasd_megatron.evaluation.benchmarks.benchmark import answer_settings
from dasd_megatron.evaluation.benchmarks.registry import declared_benchmark
from dasd_megatron.planning.estimates import Estimates
from dasd_megatron.rehearsal.engine_roles import role_of
from dasd_megatron.rehearsal.machines import Machines
from dasd_megatron.sampling.decoding_speed import fitting_sequences, weight_bytes
from dasd_megatron.sampling.engine_step import EngineStepKind
from dasd_megatron.steps.cost_estimate import Unknown, model_shape
from dasd_megatron.steps.step import Step
from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.hashing import hash_json


def run_needs(
    recipe: Recipe, steps: Mapping[str, Step], widest: Mapping[EngineRole, Step], machines: Machines
) -> RehearsalConfig:
    """Of the run's own recipe and steps; `widest`: those of each role with most engines."""
    return RehearsalConfig(
        engines={role: machines.processes(step) for role, step in widest.items()},
        longest=_longest(recipe),
        typical=_typical(recipe, widest, machines.gpu),
        scores=_scores(recipe, steps),
        setting=_setting(recipe, machines),
    )


def _setting(recipe: Recipe, machines: Machines) -> str:
    """What numbers depend on. Time limits and what they imply are none of it: a verdict asks to change them."""
    content = [getattr(recipe, name).model_dump(mode="json") for name in ("engine", "parallel", "memory", "launch")]
    launch = content[-1]
    for name in ("grace_period_seconds", "retries"):
        launch.pop(name)
    for resources in (launch["training"], launch["sampling"], launch["data"], *launch["steps"].values()):
        resources.pop("time", None)
    return hash_json([*content, machines.description, versions()])


def _longest(recipe: Recipe) -> dict[EngineRole, int]:
    """Tokens of the longest sequence that each role's engine is asked for, of those that are used."""
    found = dict[EngineRole, int]()

    def asked(role: EngineRole, tokens: int) -> None:
        found[role] = max(found.get(role, 0), tokens)

    for stage in recipe.stages:
        if stage.kind == "mixed_policy":
            asked("teacher", recipe.sampling.max_tokens)
            if recipe.mixed_policy.method == "continue":
                asked("student", recipe.packing.context_length)
            continue
        asked("scorer", recipe.packing.context_length)
        if stage.responses is None:
            asked("teacher", recipe.sampling.max_tokens)
    for index, benchmark in enumerate(recipe.evaluation.benchmarks):
        declared = declared_benchmark(benchmark, f"evaluation.benchmarks.{index}")
        tokens = answer_settings(benchmark, declared, recipe.evaluation).max_tokens
        asked("student", tokens)
        if recipe.evaluation.teacher:
            asked("teacher", tokens)
    return found


def _typical(
    recipe: Recipe, widest: Mapping[EngineRole, Step], gpu: GpuName | None
) -> dict[EngineRole, tuple[int, int]]:
    """Of each role's widest step: what a sequence has while it is decoded, and how many of them fit."""
    found: dict[EngineRole, tuple[int, int]] = {}
    estimates = Estimates(recipe)
    for role, step in widest.items():
        engine, inputs = recipe.engine.of(role), estimates.of(step)
        if gpu is None or engine.runs_elsewhere or not isinstance(step.kind, EngineStepKind):
            continue
        with contextlib.suppress(Unknown, UserError):  # the probe then does without
            decoded = step.kind.work(step.config, inputs).decoded
            if decoded is None:
                continue
            folder = inputs.model_folder("model")
            shape, length = model_shape(folder), decoded.length_while_written
            weights = weight_bytes(folder, shape, engine)
            fitting = fitting_sequences(shape, weights, engine, GPU_SPECS[gpu], length)
            if fitting:
                found[role] = round(length), fitting
    return found


def _scores(recipe: Recipe, steps: Mapping[str, Step]) -> list[EngineRole]:
    """The scorer, and whoever's alignment with the teacher is measured."""
    roles = {role for step in steps.values() if step.kind.name == "answer" and (role := role_of(step)) is not None}
    return ["scorer", *(sorted(roles) if recipe.evaluation.teacher else [])]

"""Checks what a recipe names from the registries, before anything runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from dasd_megatron.config.prompts import PromptSource
from dasd_megatron.config.recipe import Recipe
from dasd_megatron.config.responses import ResponseSource
from dasd_megatron.config.sampling import EngineRole
from dasd_megatron.curation.filters.registry import additional_filters
from dasd_megatron.curation.scores import SCORES
from dasd_megatron.evaluation.benchmarks.registry import declared_benchmark
from dasd_megatron.grading.registry import GRADERS
from dasd_megatron.sampling.engines.registry import ENGINES, ONLY_SCORE
from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.registry import Registry


def check_named_parts(recipe: Recipe) -> None:
    """Raises UserError for an engine, score, grader or filter that isn't registered, and for wrong options of a filter."""
    named: list[tuple[Registry[Any], str, str]] = [
        (ENGINES, recipe.engine.name, "engine.name"),
        *((ENGINES, recipe.engine.of(role).name, f"engine.{role}.name") for role in get_args(EngineRole)),
        *(
            (SCORES, stage.selection.applied_to(recipe.selection).score, "selection.score")
            for stage in recipe.stages
            if stage.kind == "sampled"
        ),
        *_graders(recipe),
    ]
    for registry, name, where in named:
        registry.check(name, where)
    _check_samplers(recipe)
    additional_filters(recipe.filters.additional)


def _graders(recipe: Recipe) -> Iterator[tuple[Registry[Any], str, str]]:
    sources: list[tuple[str, PromptSource | ResponseSource | None]] = [("prompts.train", recipe.prompts.train)]
    for index, stage in enumerate(recipe.stages):
        if stage.kind == "sampled":
            sources += [(f"stages.{index}.source", stage.source), (f"stages.{index}.responses", stage.responses)]
    for key, source in sources:
        if source is not None:
            grader = source.grader
            names = (
                {f"{key}.grader": grader}
                if isinstance(grader, str)
                else {f"{key}.grader.{d}": n for d, n in grader.items()}
            )
            yield from ((GRADERS, name, where) for where, name in names.items())
    for index, benchmark in enumerate(recipe.evaluation.benchmarks):
        key = f"evaluation.benchmarks.{index}"
        yield GRADERS, benchmark.grader or declared_benchmark(benchmark, key).grader, f"{key}.grader"


def _check_samplers(recipe: Recipe) -> None:
    """Raises UserError for an engine that is to sample and only scores."""
    for role in ("teacher", "student"):
        name = recipe.engine.of(role).name
        if name in ONLY_SCORE:
            named = getattr(recipe.engine, role).written().get("name")
            where = "engine.name" if named is None else f"engine.{role}.name"
            raise UserError(
                f"{where}: the engine {name} only scores, and the {role} writes, too; set engine.scorer.name={name}, and "
                f"another for the {role}, such as vllm"
            )

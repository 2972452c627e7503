"""The recipe of a rehearsal: the run's own, with few prompts and steps, in a run folder of its own. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dasd_megatron.config.load import validate
from dasd_megatron.config.recipe import Recipe
from dasd_megatron.config.rehearsal import RehearsalConfig
from dasd_megatron.config.sampling import EngineRole
from dasd_megatron.evaluation.benchmarks.benchmark import answer_settings
from dasd_megatron.evaluation.benchmarks.registry import declared_benchmark
from dasd_megatron.planning.job_resources import seconds, time_limit
from dasd_megatron.steps.step import Step

# Problems to learn from, responses to each (of those that exist already twice as many problems have one), and problems of each
# benchmark.
PROMPTS, RESPONSES, PROBLEMS = 32, 2, 8
# Of an answer to a benchmark's problem: probes take the longest sequences.
ANSWER_TOKENS = 4096
# A shard has all prompts, or all answers: a second engine would only take time to load. Probes load all of them.
ALL_ANSWERS = 1024
# Optimizer steps: of the first stage, which saves twice and is killed between, and of the others.
STEPS, SAVE_EVERY, STEPS_OF_OTHERS = 7, 3, 2
# So low that the student stays what it is, whatever it is trained on.
LEARNING_RATE = 1e-9
# Of the teacher's length, where the student's answers are cut, so that there is something to continue.
LENGTH_CAP = 0.2
# Longest time limit of jobs with GPUs, in seconds: short ones begin sooner.
TIME = 3600


def folder_of_rehearsal(run_dir: Path) -> Path:
    """The run folder of its rehearsal, beside it: on the same file system."""
    return run_dir.with_name(f"{run_dir.name}-rehearsal")


def rehearsed(
    recipe: Recipe, needs: RehearsalConfig, steps: Mapping[str, Step], widest: Mapping[EngineRole, Step]
) -> Recipe:
    """`needs`, `steps`: the run's; `widest`: its steps whose nodes the probes get."""
    content = recipe.model_dump(mode="json", exclude_unset=True)
    content["name"] = f"{recipe.name}_rehearsal"
    content["run_dir"] = str(folder_of_rehearsal(recipe.run_dir))
    content.pop("artifacts", None)  # its own, which can be deleted
    content["rehearsal"] = needs.model_dump(mode="json")
    content["stages"] = [stage.model_dump(mode="json", exclude_unset=True) for stage in recipe.stages]
    _few_problems(content, recipe)
    _few_answers(content, recipe)
    _few_steps(content)
    _small_jobs(content, recipe, steps, widest)
    return validate(f"the rehearsal of {recipe.name}", content, Recipe)


def _few_problems(content: dict[str, Any], recipe: Recipe) -> None:
    if recipe.prompts.train is not None:
        content["prompts"]["train"]["limit"] = _at_most(recipe.prompts.train.limit, PROMPTS)
    for stage in content["stages"]:
        for name, most in (("source", PROMPTS), ("responses", PROMPTS * RESPONSES)):
            if stage.get(name) is not None:
                stage[name]["limit"] = _at_most(stage[name].get("limit"), most)
        # Numbers of each domain can't be had from the first few problems.
        stage.pop("prompts", None)
        stage.get("selection", {}).pop("total", None)
    content.setdefault("selection", {}).pop("total", None)
    content.setdefault("sampling", {}).update(
        responses_per_prompt=min(RESPONSES, recipe.sampling.responses_per_prompt),
        prompts_per_shard=PROMPTS * RESPONSES,
    )
    content.setdefault("mixed_policy", {})["length_cap"] = min(LENGTH_CAP, recipe.mixed_policy.length_cap)


def _few_answers(content: dict[str, Any], recipe: Recipe) -> None:
    evaluation = content.setdefault("evaluation", {})
    evaluation.update(samples=1, alignment_prompts=PROBLEMS, answers_per_shard=ALL_ANSWERS)
    for number, benchmark in enumerate(recipe.evaluation.benchmarks):
        declared = declared_benchmark(benchmark, f"evaluation.benchmarks.{number}")
        longest = answer_settings(benchmark, declared, recipe.evaluation).max_tokens
        evaluation["benchmarks"][number].update(
            limit=_at_most(benchmark.limit, PROBLEMS), samples=1, max_tokens=min(longest, ANSWER_TOKENS)
        )


def _few_steps(content: dict[str, Any]) -> None:
    own = {
        "learning_rate": LEARNING_RATE,
        "min_learning_rate": LEARNING_RATE,
        "save_every": SAVE_EVERY,
        "keep_every": None,
        "profile": None,
    }
    content.setdefault("training", {}).update(own, steps=STEPS_OF_OTHERS)
    for number, stage in enumerate(content["stages"]):
        stage["training"] = {**stage.get("training", {}), **own, "steps": STEPS if number == 0 else STEPS_OF_OTHERS}
    content.setdefault("logging", {}).update(every=1, wandb_project=None)  # no curves of random tokens beside the run's


def _small_jobs(
    content: dict[str, Any], recipe: Recipe, steps: Mapping[str, Step], widest: Mapping[EngineRole, Step]
) -> None:
    """Short ones; with one shard a node is enough, and probes get the run's nodes."""
    launch = content.setdefault("launch", {})
    launch["retries"] = max(1, recipe.launch.retries)  # the kill counts as one
    most = max(TIME, 2 * recipe.launch.grace_period_seconds)
    own = launch.setdefault("steps", {})
    for role, step in widest.items():
        if role == "scorer" and "student" in widest and recipe.engine.of("scorer") == recipe.engine.of("student"):
            continue  # probed as one
        nodes = own.get(step.name, {}).get("nodes") or getattr(recipe.launch, step.group).nodes
        own[f"probe_{role}"] = {**own.get(step.name, {}), **({"nodes": nodes} if nodes else {})}
    for group in ("training", "sampling"):
        limit = seconds(getattr(recipe.launch, group).time)
        launch.setdefault(group, {})["time"] = time_limit(min(limit, most))
    launch["sampling"]["nodes"] = 1
    for name, resources in own.items():
        if "time" in resources:
            resources["time"] = time_limit(min(seconds(resources["time"]), most))
        if name in steps and steps[name].group == "sampling":
            resources.pop("nodes", None)


def _at_most(limit: int | None, most: int) -> int:
    return most if limit is None else min(limit, most)

"""The recipe of a rehearsal: the run's own, with few prompts and steps, in a run folder of its own. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dasd_megatron.config.load import validate
from dasd_megatron.config.recipe import Recipe
from dasd_megatron.config.sampling import EngineRole
from dasd_megatron.planning.job_resources import seconds

# Problems to learn from, responses to each, and problems of each benchmark.
PROMPTS, RESPONSES, PROBLEMS = 32, 2, 8
# A shard has all prompts, or all answers: a second engine would only take time to load. Probes load all of them.
ALL_ANSWERS = 1024
# Optimizer steps: of the first stage, which saves twice and is killed between, and of the others.
STEPS, SAVE_EVERY, STEPS_OF_OTHERS = 7, 3, 2
# So low that the student stays what it is, whatever it is trained on.
LEARNING_RATE = 1e-9
# Of the teacher's length, where the student's answers are cut, so that there is something to continue.
LENGTH_CAP = 0.5
# Longest time limit of its jobs: short ones begin sooner.
TIME = "01:00:00"


def folder_of_rehearsal(run_dir: Path) -> Path:
    """The run folder of its rehearsal, beside it: on the same file system."""
    return run_dir.with_name(f"{run_dir.name}-rehearsal")


def rehearsed(recipe: Recipe, engines: Mapping[EngineRole, int]) -> Recipe:
    """`engines`: how many of each role the run's steps have side by side."""
    content = recipe.model_dump(mode="json", exclude_unset=True)
    content["name"] = f"{recipe.name}_rehearsal"
    content["run_dir"] = str(folder_of_rehearsal(recipe.run_dir))
    content["rehearsal"] = {"engines": dict(engines)}
    content["stages"] = [stage.model_dump(mode="json", exclude_unset=True) for stage in recipe.stages]
    _few_problems(content, recipe)
    _few_steps(content)
    _short_jobs(content, recipe)
    return validate(f"the rehearsal of {recipe.name}", content, Recipe)


def _few_problems(content: dict[str, Any], recipe: Recipe) -> None:
    if recipe.prompts.train is not None:
        content["prompts"]["train"]["limit"] = _at_most(recipe.prompts.train.limit, PROMPTS)
    for stage in content["stages"]:
        for source in filter(None, (stage.get("source"), stage.get("responses"))):
            source["limit"] = _at_most(source.get("limit"), PROMPTS)
        # Numbers of each domain can't be had from the first few problems.
        stage.pop("prompts", None)
        stage.get("selection", {}).pop("total", None)
    content.setdefault("selection", {}).pop("total", None)
    content.setdefault("sampling", {}).update(
        responses_per_prompt=min(RESPONSES, recipe.sampling.responses_per_prompt),
        prompts_per_shard=PROMPTS,
    )
    content.setdefault("mixed_policy", {})["length_cap"] = LENGTH_CAP
    content.setdefault("packing", {})["held_out"] = 0.0
    evaluation = content.setdefault("evaluation", {})
    evaluation.update(samples=1, alignment_prompts=PROBLEMS, answers_per_shard=ALL_ANSWERS)
    for number, benchmark in enumerate(recipe.evaluation.benchmarks):
        few = {"limit": _at_most(benchmark.limit, PROBLEMS), "samples": 1}
        evaluation["benchmarks"][number].update(few)


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
    content.setdefault("logging", {}).update(every=1, wandb_project=None)


def _short_jobs(content: dict[str, Any], recipe: Recipe) -> None:
    launch = content.setdefault("launch", {})
    for group in ("training", "sampling", "data"):
        limit = getattr(recipe.launch, group).time
        launch.setdefault(group, {})["time"] = min(limit, TIME, key=seconds)
    for resources in launch.get("steps", {}).values():
        if "time" in resources:
            resources["time"] = min(resources["time"], TIME, key=seconds)


def _at_most(limit: int | None, most: int) -> int:
    return most if limit is None else min(limit, most)

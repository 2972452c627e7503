"""The runs of a study, and the steps that they have in common."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from dasd_megatron.config.load import load_recipe, load_section, recipe_text
from dasd_megatron.config.recipe import Recipe
from dasd_megatron.config.study import StudyConfig
from dasd_megatron.pipeline.graph import STUDENT, build_steps
from dasd_megatron.runtime.publish import publish
from dasd_megatron.steps.step import Step
from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.files import write_atomically

# In a study's folder: the recipes that its steps read; in a run's: the same, for people.
RECIPES, RECIPE = "recipes", "recipe.yaml"


@dataclass(frozen=True)
class StudyRun:
    """An arm with a seed: a run like any other, with the study's folder of artifacts."""

    arm: str
    seed: int
    recipe: Recipe
    steps: Mapping[str, Step]

    @cached_property
    def text(self) -> bytes:
        """Its recipe, as a recipe file."""
        return recipe_text(self.recipe).encode()

    @property
    def file(self) -> Path:
        """Its recipe, which its steps read: named by its content, so that steps which are queued keep theirs."""
        name = f"{self.arm}-{self.seed}-{hashlib.sha256(self.text).hexdigest()[:12]}.yaml"
        return self.recipe.folder_of_artifacts.parent / RECIPES / name

    @property
    def model(self) -> str:
        """The name of the model that it ends with."""
        return self.recipe.stages[-1].name if self.recipe.stages else STUDENT

    @property
    def done(self) -> bool:
        """Whether all of its steps are."""
        return all(step.done for step in self.steps.values())

    def write_recipe(self) -> None:
        """Writes `file`."""
        if not self.file.is_file():
            write_atomically(self.file, lambda out: out.write(self.text))

    def publish(self) -> None:
        """Of a run that is done: its report, its model and, so that `dasd launch` takes it, its recipe in its folder."""
        publish(self.recipe, self.steps)
        write_atomically(self.recipe.run_dir / RECIPE, lambda out: out.write(self.text))


@dataclass(frozen=True)
class Study:
    """A study file, and its runs: arm by arm."""

    config: StudyConfig
    runs: Sequence[StudyRun]

    @property
    def whole_seeds(self) -> list[int]:
        """Seeds with which every arm is done."""
        return [seed for seed in self.config.seeds if all(run.done for run in self.runs if run.seed == seed)]

    def of_arm(self, arm: str) -> list[StudyRun]:
        """The runs of an arm, in the order of seeds."""
        return [run for run in self.runs if run.arm == arm]

    @property
    def benchmarks(self) -> list[str]:
        """Names of the benchmarks."""
        return [benchmark.name for benchmark in self.runs[0].recipe.evaluation.benchmarks]


def load_study(path: Path, prepare: Callable[[Recipe], Recipe] = lambda recipe: recipe) -> Study:
    """The study in `path`, each recipe as `prepare` makes it. Raises UserError naming file, key and remedy."""
    config = load_section(path, StudyConfig, "a study is a mapping of keys, such as `name: schedule`")
    runs = []
    # Seed by seed, so that a study that isn't finished has whole comparisons early.
    for seed in config.seeds:
        for arm, settings in config.arms.items():
            own = {
                **config.settings,
                **settings,
                "name": f"{config.name}_{arm}_{seed}",
                "run_dir": str(config.study_dir / arm / f"seed-{seed}"),
                "artifacts": str(config.study_dir / "artifacts"),
                "seed": seed,
                # Once for all seeds: answers of the models that all runs start from, and what KL is estimated over.
                "evaluation.seed": config.seeds[0],
            }
            try:
                recipe = prepare(load_recipe(config.recipe, [_override(key, value) for key, value in own.items()]))
                runs.append(StudyRun(arm, seed, recipe, build_steps(recipe)))
            except UserError as error:
                raise UserError(f"{path}: arms.{arm}: {error}") from None
    study = Study(config, runs)
    if not study.benchmarks:
        raise UserError(f"{path}: {config.recipe} has no evaluation.benchmarks, so that arms can't be compared")
    for run in study.runs:
        _check_comparable(path, run, study.runs[0])
    _check_different(path, study)
    return study


def _override(key: str, value: Any) -> str:
    """As on a command line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return f"{key}={text.removesuffix('...' + chr(10)).strip()}"


def _check_comparable(path: Path, run: StudyRun, first: StudyRun) -> None:
    """Raises UserError where an arm is measured in another way than the first, which can't be compared."""

    def measured(of: StudyRun) -> dict[str, str]:
        """What the models that all runs start from were measured by: problems, models, settings, graders."""
        return {
            name: step.key
            for name, step in of.steps.items()
            if name.startswith(("benchmark_", "reference_", "answer_student_", "answer_teacher_", "grade_student_"))
        }

    own, others = measured(run), measured(first)
    for name in {**others, **own}:
        if own.get(name) != others.get(name):
            raise UserError(
                f"{path}: arms.{run.arm}: its step {name} isn't that of arms.{first.arm}; arms are compared on the same "
                "problems, with the same student and teacher, and answers sampled and graded alike (sampling.max_tokens is also "
                "that of the teacher's responses for KL; evaluation.teacher=false leaves KL out)"
            )


def _check_different(path: Path, study: Study) -> None:
    """Raises UserError where two arms are one, and their difference no result."""
    known: dict[str, StudyRun] = {}
    for run in study.runs:
        if run.model == STUDENT:
            continue
        other = known.setdefault(run.steps[f"export_{run.model}"].key, run)
        if other.arm != run.arm:
            raise UserError(
                f"{path}: arms.{run.arm} and arms.{other.arm} make the same model: no setting in which they differ shapes "
                "a result"
            )


def steps_of(study: Study) -> dict[str, tuple[Step, StudyRun]]:
    """Every step of all runs, once, by the name of its folder, each after those it reads; with the first run that has it."""
    found: dict[str, tuple[Step, StudyRun]] = {}
    for run in study.runs:
        for step in run.steps.values():
            found.setdefault(step.folder.name, (step, run))
    return found

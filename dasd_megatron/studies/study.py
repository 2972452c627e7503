"""The runs of a study, and the steps that they have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from dasd_megatron.config.load import load_recipe, load_section, recipe_text
from dasd_megatron.config.recipe import Recipe
from dasd_megatron.config.study import StudyConfig
from dasd_megatron.pipeline.graph import STUDENT, build_steps
from dasd_megatron.steps.step import Step
from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.files import write_atomically

RECIPE = "recipe.yaml"


@dataclass(frozen=True)
class StudyRun:
    """An arm with a seed: a run like any other, with the study's folder of artifacts."""

    arm: str
    seed: int
    recipe: Recipe
    steps: Mapping[str, Step]

    @property
    def file(self) -> Path:
        """Its recipe, which its steps read."""
        return self.recipe.run_dir / RECIPE

    @property
    def model(self) -> str:
        """The name of the model that it ends with."""
        return self.recipe.stages[-1].name if self.recipe.stages else STUDENT

    def write_recipe(self) -> None:
        """Writes `file`; `dasd launch` takes it as well."""
        text = recipe_text(self.recipe).encode()
        if not self.file.is_file() or self.file.read_bytes() != text:
            write_atomically(self.file, lambda out: out.write(text))


@dataclass(frozen=True)
class Study:
    """A study file, and its runs: arm by arm."""

    config: StudyConfig
    runs: Sequence[StudyRun]

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
            }
            try:
                recipe = prepare(load_recipe(config.recipe, [_override(key, value) for key, value in own.items()]))
                runs.append(StudyRun(arm, seed, recipe, build_steps(recipe)))
            except UserError as error:
                raise UserError(f"{path}: arms.{arm}: {error}") from None
    study = Study(config, runs)
    _check_benchmarks(path, study)
    return study


def _override(key: str, value: Any) -> str:
    """As on a command line."""
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return f"{key}={text.removesuffix('...' + chr(10)).strip()}"


def _check_benchmarks(path: Path, study: Study) -> None:
    """Raises UserError where arms are measured on different things, which can't be compared."""

    def measured(run: StudyRun) -> list[tuple[str, str]]:
        return [
            (name, run.steps[f"benchmark_{name}"].key) for name in (b.name for b in run.recipe.evaluation.benchmarks)
        ]

    first = study.runs[0]
    if not first.recipe.evaluation.benchmarks:
        raise UserError(f"{path}: {study.config.recipe} has no evaluation.benchmarks, so that arms can't be compared")
    for run in study.runs:
        if measured(run) != measured(first):
            raise UserError(
                f"{path}: arms.{run.arm}: its evaluation.benchmarks aren't those of arms.{first.arm}; arms are compared on the "
                "same problems"
            )


def steps_of(study: Study) -> dict[str, tuple[Step, StudyRun]]:
    """Every step of all runs, once, by the name of its folder, each after those it reads; with the first run that has it."""
    found: dict[str, tuple[Step, StudyRun]] = {}
    for run in study.runs:
        for step in run.steps.values():
            found.setdefault(step.folder.name, (step, run))
    return found

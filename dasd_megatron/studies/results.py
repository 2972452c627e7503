"""What the runs of a study measured: by arm, and the differences that its comparisons ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.pipeline.graph import STUDENT, TEACHER
from dasd_megatron.report.summary import scores_by_temperature
from dasd_megatron.studies.effects import Estimate, Numbers, estimate, smallest_seen
from dasd_megatron.studies.study import Study, StudyRun
from dasd_megatron.utils.errors import UserError

KL = "KL"
# {problem: number} of one model.
ByProblem = Mapping[str, float]


@dataclass(frozen=True)
class Effect:
    """The difference between two arms.

    Attributes:
        difference: the arm less the other.
        smallest_seen: the true difference that would have been found in four of five such studies.
    """

    difference: Estimate
    smallest_seen: float


@dataclass(frozen=True)
class Compared:
    """A comparison of the study, and what was found, by benchmark and measure."""

    name: str
    arm: str
    against: str
    effects: Mapping[str, Mapping[str, Effect]]


@dataclass(frozen=True)
class Results:
    """Of a whole study.

    Attributes:
        problems: how many each benchmark has.
        estimates: {student, teacher or arm: {benchmark: {greedy, a temperature or KL: estimate}}}; accuracy as a share, KL in
            nats a response.
    """

    seeds: Sequence[int]
    problems: Mapping[str, int]
    estimates: Mapping[str, Mapping[str, Mapping[str, Estimate]]]
    comparisons: Sequence[Compared]

    def as_json(self) -> dict[str, Any]:
        """For study.json."""
        return asdict(self)


def results_of(study: Study) -> Results:
    """Of the seeds with which every arm is done. Raises UserError where nothing can be compared."""
    seeds = study.whole_seeds
    found: dict[str, dict[str, dict[str, list[ByProblem]]]] = {}
    for run in (run for run in study.runs if run.seed in seeds):
        for name, model in _models(study, run).items():
            for benchmark in study.benchmarks:
                measures = found.setdefault(name, {}).setdefault(benchmark, {})
                for measure, scores in _measured(run, model, benchmark).items():
                    measures.setdefault(measure, []).append(scores)
    comparisons = [
        Compared(
            comparison.name,
            comparison.arm,
            comparison.against,
            _effects(found[comparison.arm], found[comparison.against]),
        )
        for comparison in study.config.compared()
    ]
    ordered = [name for name in (STUDENT, *study.config.arms, TEACHER) if name in found]
    estimates = {
        name: {
            benchmark: {measure: estimate(_table(of_seeds)) for measure, of_seeds in measures.items()}
            for benchmark, measures in found[name].items()
        }
        for name in ordered
    }
    problems = {
        benchmark: Artifact(study.runs[0].steps[f"benchmark_{benchmark}"].folder).row_count("prompts")
        for benchmark in study.benchmarks
    }
    return Results(seeds, problems, estimates, comparisons)


def _models(study: Study, run: StudyRun) -> dict[str, str]:
    """What a run adds to the results: its last model under the arm's name and, once a seed, the models that it starts from."""
    models = {run.arm: run.model}
    if run.arm == next(iter(study.config.arms)):
        models[STUDENT] = STUDENT
        if run.recipe.evaluation.teacher:
            models[TEACHER] = TEACHER
    return models


def _measured(run: StudyRun, model: str, benchmark: str) -> dict[str, ByProblem]:
    """A model's scores: accuracy by temperature, and KL to the teacher."""
    found: dict[str, ByProblem] = dict(scores_by_temperature(Artifact(run.steps[f"grade_{model}_{benchmark}"].folder)))
    answers = Artifact(run.steps[f"answer_{model}_{benchmark}"].folder)
    if "alignment" in answers.manifest and model != TEACHER:
        aligned = answers.read("alignment")
        differences = np.asarray(aligned["teacher_logprob"]) - np.asarray(aligned["model_logprob"])
        found[KL] = dict(zip(aligned["uuid"].to_pylist(), differences.tolist(), strict=True))
    return found


def _table(of_seeds: Sequence[ByProblem], problems: Sequence[str] | None = None) -> Numbers:
    """(seeds, problems): of `problems`, by default those that every seed has."""
    if problems is None:
        problems = _common(of_seeds)
    return np.array([[scores[problem] for problem in problems] for scores in of_seeds])


def _common(scores: Sequence[ByProblem]) -> list[str]:
    """The problems that all of them have. Raises UserError where there are none."""
    found = set.intersection(*(set(of_one) for of_one in scores))
    if not found:
        raise UserError(
            "KL can't be compared: there is no problem of which the teacher's response ended and fits every model; raise "
            "sampling.max_tokens or engine.max_length, or set evaluation.teacher=false"
        )
    return sorted(found)


def _effects(
    ours: Mapping[str, Mapping[str, Sequence[ByProblem]]], others: Mapping[str, Mapping[str, Sequence[ByProblem]]]
) -> dict[str, dict[str, Effect]]:
    """By benchmark and measure, over the problems that both have with every seed."""
    found: dict[str, dict[str, Effect]] = {}
    for benchmark, measures in ours.items():
        for measure, of_seeds in measures.items():
            against = others[benchmark][measure]
            problems = _common([*of_seeds, *against])
            differences = _table(of_seeds, problems) - _table(against, problems)
            found.setdefault(benchmark, {})[measure] = Effect(estimate(differences), smallest_seen(differences))
    return found

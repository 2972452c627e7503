"""The numbers of a run: by benchmark and model, with intervals, and each model beside the one before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.evaluation.comparison import compare
from dasd_megatron.evaluation.measures import scores_by_problem, temperature_name

TEACHER = "teacher"


def summarize(artifacts: Mapping[str, Artifact], models: Sequence[str], benchmarks: Sequence[str]) -> dict[str, Any]:
    """For summary.json.

    Args:
        artifacts: of all steps, by name.
        models: the student, each stage's, and maybe the teacher, in this order.
    """
    return {
        "benchmarks": {benchmark: _of_benchmark(artifacts, models, benchmark) for benchmark in benchmarks},
        "seconds": {name: artifact.manifest["seconds"] for name, artifact in artifacts.items()},
        **_machines(artifacts),
    }


def _machines(artifacts: Mapping[str, Artifact]) -> dict[str, Any]:
    """What the steps ran on, and for how long: GPUs by kind, CPU cores, hours of steps, and of the GPUs that they held.

    A step that was interrupted counts from its last start.
    """
    gpus: dict[str, int] = {}
    cores, hours, gpu_hours = 0, 0.0, 0.0
    for artifact in artifacts.values():
        machine, step_hours = artifact.manifest["machine"], artifact.manifest["seconds"] / 3600
        held = machine["gpus"] * machine["nodes"]
        hours, gpu_hours = hours + step_hours, gpu_hours + step_hours * held
        cores = max(cores, machine["cores"] * machine["nodes"])
        if machine["gpu"] is not None:
            gpus[machine["gpu"]] = max(gpus.get(machine["gpu"], 0), held)
    return {"gpus": gpus, "cores": cores, "hours": hours, "gpu_hours": gpu_hours}


def _of_benchmark(artifacts: Mapping[str, Artifact], models: Sequence[str], benchmark: str) -> dict[str, Any]:
    problems = artifacts[f"benchmark_{benchmark}"].manifest
    answers = {model: artifacts[f"answer_{model}_{benchmark}"].manifest for model in models}
    grades = {model: artifacts[f"grade_{model}_{benchmark}"] for model in models}
    students = [model for model in models if model != TEACHER]
    return {
        "problems": problems["counts"]["prompts"],
        "dates": problems["dates"],
        "sha256": problems["sha256"],
        "grader": grades[models[0]].manifest["config"]["grader"],
        "measures": {model: grade.manifest["measures"] for model, grade in grades.items()},
        "alignment": {model: facts["alignment"] for model, facts in answers.items() if "alignment" in facts},
        "steps": {later: _comparison(grades[earlier], grades[later], earlier) for earlier, later in pairwise(students)},
        "gain": _comparison(grades[students[0]], grades[students[-1]], students[0]) if students[1:] else {},
    }


def _comparison(earlier: Artifact, later: Artifact, name: str) -> dict[str, Any]:
    """By temperature: the later model's scores less the earlier's."""
    before, after = scores_by_temperature(earlier), scores_by_temperature(later)
    return {
        temperature: {"against": name, **asdict(compare(scores, before[temperature]))}
        for temperature, scores in after.items()
    }


def scores_by_temperature(grade: Artifact) -> dict[str, dict[str, float]]:
    """{temperature: {problem: mean over its answers}}."""
    answers = grade.read("answers", ["uuid", "temperature", "correct"])
    found = {}
    for temperature in sorted(set(answers["temperature"].to_pylist())):
        value = pa.scalar(temperature, pa.float32())
        chosen = answers.filter(pc.equal(answers["temperature"], value))
        found[temperature_name(temperature)] = scores_by_problem(chosen)
    return found


def scores(artifacts: Mapping[str, Artifact], models: Sequence[str], benchmarks: Sequence[str]) -> dict[str, Any]:
    """For scores.json, with which other evaluations are compared: {benchmark: {sha256, models: {model: by temperature}}}."""
    return {
        benchmark: {
            "sha256": artifacts[f"benchmark_{benchmark}"].manifest["sha256"],
            "models": {model: scores_by_temperature(artifacts[f"grade_{model}_{benchmark}"]) for model in models},
        }
        for benchmark in benchmarks
    }

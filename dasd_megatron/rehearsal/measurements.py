"""What a rehearsal has measured, from its artifacts. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.artifacts.training_files import METRICS, SAVES
from dasd_megatron.config.recipe import Recipe
from dasd_megatron.config.sampling import EngineRole
from dasd_megatron.curation.worst_case_packs import worst_lengths
from dasd_megatron.models.flops import training_flops
from dasd_megatron.models.hf_config import read_config, shape_of
from dasd_megatron.steps.step import Step
from dasd_megatron.training.train_step_config import TrainConfig

# Fewer responses say too little of their lengths.
ENOUGH = 32


@dataclass(frozen=True)
class EngineSpeed:
    """Of one engine, beside as many others as the run has.

    Attributes:
        startup: seconds from a step's start until its engine takes requests.
        decoded, scored: tokens/s; decoded is 0 where a model only scores.
        prompt_tokens, response_tokens: mean lengths while it decoded.
        longest: tokens of the longest sequence, which it took.
        host_memory_gib: of its processes.
    """

    startup: float
    decoded: float
    scored: float
    prompt_tokens: float
    response_tokens: float
    longest: int
    host_memory_gib: float


@dataclass(frozen=True)
class TrainingSpeed:
    """Of a stage on worst-case packs.

    Attributes:
        startup: seconds that aren't steps: start, load, last weights.
        flops: of the model, by all ranks together, in a second.
        mfu: None without a GPU that is known.
        memory_gib: of the fullest rank; host_memory_gib: of a node's ranks.
        longest_step, longest_save: seconds.
    """

    startup: float
    flops: float
    tokens: float
    mfu: float | None
    memory_gib: float
    host_memory_gib: float
    longest_step: float
    longest_save: float


@dataclass(frozen=True)
class Lengths:
    """Of the teacher's responses; None where too few were seen."""

    prompt: int | None
    responses: Mapping[str, int]  # by stage
    spread: float | None


@dataclass(frozen=True)
class Measurements:
    """All of a rehearsal; `seconds`: each step's, from its start to its end."""

    seconds: Mapping[str, float]
    engines: Mapping[EngineRole, EngineSpeed]
    training: TrainingSpeed | None
    lengths: Lengths


def measurements(recipe: Recipe, steps: Mapping[str, Step], walls: Mapping[str, float]) -> Measurements:
    """Of a rehearsal's recipe, whose steps are done; `walls`: of steps, with the start of their processes, where it's known."""
    seconds = {name: walls.get(name, float(Artifact(step.folder).manifest["seconds"])) for name, step in steps.items()}
    probes = {name: step for name, step in steps.items() if step.kind.name == "probe"}
    engines = {step.config.role: _engine(step, seconds[name]) for name, step in probes.items()}  # type: ignore[attr-defined]
    if "student" in engines:  # one engine does both, unless the scorer has settings of its own
        engines.setdefault("scorer", engines["student"])
    stage = next((step for step in steps.values() if step.kind.name == "train"), None)
    training = None if stage is None else _training(recipe, stage, seconds[stage.name])
    return Measurements(seconds, engines, training, _lengths(recipe, steps, engines))


def _engine(step: Step, seconds: float) -> EngineSpeed:
    means: dict[str, float] = Artifact(step.folder).manifest["probe"]
    decoding, scoring = means["decoded_seconds"], means["scored_seconds"]
    return EngineSpeed(
        startup=max(0.0, seconds - means["work_seconds"]),
        decoded=means["decoded_tokens"] / decoding if decoding else 0.0,
        scored=means["scored_tokens"] / scoring if scoring else 0.0,
        prompt_tokens=means["prompt_tokens"],
        response_tokens=means["response_tokens"],
        longest=int(means["longest"]),
        host_memory_gib=means["host_memory_gib"],
    )


def _training(recipe: Recipe, step: Step, seconds: float) -> TrainingSpeed:
    """The first step after a start isn't counted: it allocates, and compiles."""
    lines = _lines(step, METRICS)
    config = step.config
    assert isinstance(config, TrainConfig)
    again = config.kill_after  # the first step after the resumption
    warm = [line for line in lines if line["step"] not in (1, again)] or lines
    mean = float(np.mean([line["seconds"] for line in warm]))
    trained = sum(line["seconds"] for line in lines if line["step"] >= (again or 1))  # others were before the kill
    mfus = [line["mfu"] for line in warm if "mfu" in line]
    saves = _lines(step, SAVES)
    return TrainingSpeed(
        startup=max(0.0, seconds - trained),
        flops=_flops_of_a_step(recipe, config) / mean,
        tokens=float(np.mean([line["tokens"] for line in warm])) / mean,
        mfu=float(np.mean(mfus)) if mfus else None,
        memory_gib=max(line["memory_gib"] for line in lines),
        host_memory_gib=Artifact(step.folder).manifest["host_memory_gib"],
        longest_step=max(line["seconds"] for line in lines),
        longest_save=max((line["seconds"] for line in saves), default=0.0),
    )


def _flops_of_a_step(recipe: Recipe, config: TrainConfig) -> float:
    """Mean, of the model's FLOPs."""
    shape, length = shape_of(read_config(recipe.student.model), recipe.student.model), recipe.packing.context_length
    packs = [worst_lengths(length, number) for number in range(2)]
    attended = packs if config.isolate_documents else [[length], [length]]
    return config.training.global_batch * sum(training_flops(shape, pack) for pack in attended) / 2


def _lines(step: Step, name: str) -> list[dict[str, Any]]:
    path = step.folder / name
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def _lengths(recipe: Recipe, steps: Mapping[str, Step], engines: Mapping[EngineRole, EngineSpeed]) -> Lengths:
    made: dict[str, NDArray[np.int64]] = {}
    for stage in recipe.stages:
        step = steps.get(f"sample_{stage.name}") or steps.get(f"responses_{stage.name}")
        if step is not None:
            found = Artifact(step.folder).read("responses", ["tokens"])["tokens"].to_numpy().astype(np.int64)
            if len(found) >= ENOUGH:
                made[stage.name] = found
    teacher = engines.get("teacher")
    lengths = np.concatenate([*made.values()]) if made else np.zeros(0)
    return Lengths(
        prompt=round(teacher.prompt_tokens) if teacher else None,
        responses={name: round(float(found.mean())) for name, found in made.items()},
        spread=round(float((lengths**2).mean() / lengths.mean() ** 2), 2) if len(lengths) else None,
    )

"""What a rehearsal has measured, from its artifacts. No torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.artifacts.training_files import METRICS, SAVES
from dasd_megatron.config.recipe import Recipe
from dasd_megatron.config.sampling import EngineRole
from dasd_megatron.sampling.engine_probe import ProbeConfig
from dasd_megatron.steps.step import Step
from dasd_megatron.training.train_step_config import TrainConfig

# Fewer responses say too little of their lengths.
ENOUGH = 32


@dataclass(frozen=True)
class EngineSpeed:
    """Of one engine, beside as many others as the run has.

    Attributes:
        startup: seconds from a step's start until its engine takes requests.
        decoded, scored: tokens/s; 0 where the model only does the other.
        length, sequences: mean tokens of a sequence while it decoded, and how many it had together.
        prompt_tokens: mean.
        scored_length: mean tokens of what it scored.
        longest: tokens of the longest sequence, which it took.
        host_memory_gib: of its processes.
    """

    startup: float
    decoded: float
    scored: float
    length: float
    sequences: int
    prompt_tokens: float
    scored_length: float
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
    """Of a rehearsal's recipe, whose steps are done.

    `walls`: seconds of steps, by their folders, with the start of their processes, where it's known.
    """
    seconds = {
        name: walls.get(step.folder.name, float(Artifact(step.folder).manifest["seconds"]))
        for name, step in steps.items()
    }
    probes = {name: step for name, step in steps.items() if step.kind.name == "probe"}
    engines = {step.config.role: _engine(step, seconds[name]) for name, step in probes.items()}  # type: ignore[attr-defined]
    if "student" in engines:  # one engine does both, unless the scorer has settings of its own
        engines.setdefault("scorer", engines["student"])
    stages = [step for step in steps.values() if step.kind.name == "train"]
    training = _training(stages, seconds[stages[0].name]) if stages else None
    return Measurements(seconds, engines, training, _lengths(recipe, steps, engines))


def _engine(step: Step, seconds: float) -> EngineSpeed:
    means: dict[str, float] = Artifact(step.folder).manifest["probe"]
    config, scoring = step.config, means["scored_seconds"]
    assert isinstance(config, ProbeConfig)
    length, sequences = means["prompt_tokens"] + means["response_tokens"] / 2, config.engine.max_batch
    tokens, decoding = means["decoded_tokens"], means["decoded_seconds"]
    if config.typical is not None and means["typical_tokens"]:
        (length, sequences), tokens, decoding = config.typical, means["typical_tokens"], means["typical_seconds"]
    return EngineSpeed(
        startup=max(0.0, seconds - means["work_seconds"]),
        decoded=tokens / decoding if decoding else 0.0,
        scored=means["scored_tokens"] / scoring if means["scored_tokens"] else 0.0,
        length=length,
        sequences=sequences,
        prompt_tokens=means["prompt_tokens"],
        scored_length=means["scored_tokens"] / (means["scored_sequences"] or 1),
        longest=int(means["longest"]),
        host_memory_gib=means["host_memory_gib"],
    )


def _training(stages: Sequence[Step], seconds: float) -> TrainingSpeed:
    """Speed is the first stage's, memory and times are the worst of all. `seconds`: of the first stage."""
    first = stages[0]
    config, lines, warm = first.config, _lines(first, METRICS), _warm(first)
    assert isinstance(config, TrainConfig)
    taken = sum(line["seconds"] for line in warm)
    flops = sum(line["tflops_per_gpu"] * line["seconds"] for line in warm) * 1e12 * config.parallel.world_size
    # Steps before the kill were of the attempt before.
    trained = sum(line["seconds"] for line in lines if line["step"] >= (config.kill_after or 1))
    mfus = [line["mfu"] for line in warm if "mfu" in line]
    every = [line for stage in stages for line in _lines(stage, METRICS)]
    return TrainingSpeed(
        startup=max(0.0, seconds - trained),
        flops=flops / taken,
        tokens=sum(line["tokens"] for line in warm) / taken,
        mfu=float(np.mean(mfus)) if mfus else None,
        memory_gib=max(line["memory_gib"] for line in every),
        host_memory_gib=max(Artifact(stage.folder).manifest["host_memory_gib"] for stage in stages),
        longest_step=max(line["seconds"] for stage in stages for line in _warm(stage)),
        longest_save=max((line["seconds"] for stage in stages for line in _lines(stage, SAVES)), default=0.0),
    )


def _warm(stage: Step) -> list[dict[str, Any]]:
    """Of a stage's steps those that aren't the first after a start: that one allocates, and compiles."""
    assert isinstance(stage.config, TrainConfig)
    lines = _lines(stage, METRICS)
    return [line for line in lines if line["step"] not in (1, stage.config.kill_after)] or lines


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

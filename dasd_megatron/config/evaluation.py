"""Held-out measures: `evaluation`."""

from __future__ import annotations

from typing import Annotated

from pydantic import BeforeValidator, model_validator

from dasd_megatron.config.base import Config, NonNegative, Positive, Temperature
from dasd_megatron.config.benchmarks import BenchmarkConfig, named


class EvaluationConfig(Config):
    """Held-out measures. Paper: T=1.0, top-p 1, 64 samples a problem (avg@64)."""

    benchmarks: list[Annotated[BenchmarkConfig, BeforeValidator(named)]] = []
    """What every model is measured on. Their problems are never learned from (`prompts.held_out`)."""

    temperatures: list[Temperature] = [1.0]
    """Of the answers; 0 is greedy, with one answer a problem."""

    samples: Positive = 64
    """Answers a problem at each temperature above 0."""

    seed: NonNegative | None = None
    """Of the answers, and of the teacher's responses that KL is estimated over; by default the recipe's."""

    max_tokens: Positive = 81_920
    """Longest answer. The paper's; 102,400 on AIME, where neither this nor the benchmark's own is set."""

    teacher: bool = True
    """Whether the teacher is measured, too, and how far each model is from it. false where it can't be run: then every stage's
    `responses` must be there already."""

    alignment_prompts: Positive = 1000
    """Problems of each benchmark whose teacher responses (T=1) KL(teacher || student) is estimated over."""

    answers_per_shard: Positive = 64
    """A shard is what replicas share out, and a file."""

    @model_validator(mode="after")
    def _distinct(self) -> EvaluationConfig:
        names = [benchmark.name for benchmark in self.benchmarks]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"benchmarks names {name} twice")
        for temperatures in (self.temperatures, *(benchmark.temperatures for benchmark in self.benchmarks)):
            if temperatures is not None and (not temperatures or len(set(temperatures)) < len(temperatures)):
                raise ValueError(f"temperatures={temperatures}: give at least one, and none twice")
        return self

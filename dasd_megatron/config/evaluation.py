"""Held-out measures: `evaluation`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from dasd_megatron.config.base import Config, Positive


class EvaluationConfig(Config):
    """Held-out measures. Paper: T=1.0, top-p 1, 64 samples a problem (avg@64)."""

    temperatures: list[Annotated[float, Field(gt=0, le=10)]] = [0.6, 1.0]
    """Of sampled answers. Greedy decoding is always measured, too."""

    samples: Positive = 64
    """Sampled answers a problem at each temperature."""

    max_tokens: Positive = 81_920
    """Longest answer."""

    grader: str = "number"
    """How an answer is compared with the reference: `exact` text, equal `number`s, `math` (the same value in whatever form), the
    letter of a `choice`, `code` that passes tests, or a grader that a plugin registers."""

    teacher: bool = True
    """Whether the teacher is measured, too, and how far each model is from it. false where it can't be run: then every stage's
    `responses` must be there already."""

    alignment_prompts: Positive = 1000
    """Held-out problems whose teacher responses (T=1) KL(teacher || student) is estimated over."""

    problems_per_shard: Positive = 512
    """A shard is what replicas share out, and a file."""

    @model_validator(mode="after")
    def _distinct(self) -> EvaluationConfig:
        if len(set(self.temperatures)) < len(self.temperatures):
            raise ValueError(f"temperatures={self.temperatures} names one twice")
        return self

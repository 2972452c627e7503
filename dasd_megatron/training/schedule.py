"""Learning rate over a stage, and how long a stage is."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def total_steps(packs: int, training: Mapping[str, Any]) -> int:
    """Optimizer steps of a stage: `steps` if given, else as many as `epochs` need (the last batch may begin another)."""
    return (
        int(training["steps"])
        if training["steps"]
        else math.ceil(training["epochs"] * packs / training["global_batch"])
    )


def learning_rate(step: int, steps: int, training: Mapping[str, Any]) -> float:
    """Rate of 0-based `step`: linear warm-up, then cosine to the minimum (paper, section 3.1)."""
    highest, lowest = training["learning_rate"], training["min_learning_rate"]
    warmup = round(training["warmup_ratio"] * steps)
    if step < warmup:
        return float(highest * (step + 1) / warmup)
    share = (step - warmup) / max(1, steps - 1 - warmup)
    return float(lowest + (highest - lowest) * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))

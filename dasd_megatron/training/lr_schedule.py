"""Learning rate over a stage."""

from __future__ import annotations

import math

from dasd_megatron.config.training import TrainingConfig


def learning_rate(step: int, steps: int, training: TrainingConfig) -> float:
    """Rate of 0-based `step`: linear warm-up, then cosine to the minimum (paper, section 3.1)."""
    peak, minimum = training.learning_rate, training.min_learning_rate
    warmup = round(training.warmup_ratio * steps)
    if step < warmup:
        return float(peak * (step + 1) / warmup)
    share = (step - warmup) / max(1, steps - 1 - warmup)
    return float(minimum + (peak - minimum) * 0.5 * (1 + math.cos(math.pi * min(1.0, share))))

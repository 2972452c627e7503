"""Lengths of responses as the paper has them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# In the teacher's tokens: log-normal, so that E[L^2] / E[L]^2 is that of the paper's figure 8.
MEAN_TOKENS, SECOND_MOMENT, MAX_TOKENS = 17_600, 1.8, 65_536


def paper_lengths(random: np.random.Generator, count: int) -> NDArray[np.int64]:
    """Tokens of each of `count` responses."""
    sigma = np.sqrt(np.log(SECOND_MOMENT))
    drawn = random.lognormal(np.log(MEAN_TOKENS) - sigma**2 / 2, sigma, count)
    return drawn.clip(64, MAX_TOKENS).astype(np.int64)

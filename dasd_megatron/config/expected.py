"""What a dry run assumes: `expected`."""

from __future__ import annotations

from pydantic import Field

from dasd_megatron.config.base import Config, Positive, Probability


class ExpectedConfig(Config):
    """What a dry run assumes before anything is measured. Shapes no result."""

    prompt_tokens: Positive = 300
    """A question in its chat template. The paper gives no length; ours is a guess that hardly counts beside the response."""

    response_tokens: Positive = 17_600
    """Mean, where a stage doesn't say otherwise. The paper's data at T=1.0: 5.8G tokens in 330K responses."""

    length_spread: float = Field(1.8, ge=1)
    """Mean of the squared lengths of documents, by the square of their mean: that of the paper's figure 8. 1 would be all of one
    length. Attention and KV cache cost by the square, so by this they cost more than at the mean."""

    truncated_answers: Probability = 0.3
    """Mixed policy: share of the student's answers that reach the cap (paper: 15K of 50K)."""

    kept_continuations: Probability = 0.847
    """Mixed policy: share of the continuations that pass the filters (paper: 12.7K of 15K)."""

    mbu: float = Field(0.4, gt=0, le=1)
    """Memory bandwidth utilization of GPUs in decoding: an assumption."""

    mfu: float = Field(0.4, gt=0, le=1)
    """Model FLOPs utilization of GPUs in scoring and training: an assumption."""

"""What a tile of logits gives: statistics of its softmax, and gradients. In plain PyTorch; for GPUs see cross_entropy_kernels."""

from __future__ import annotations

import torch

# Columns of the logits that a temporary is made of at a time.
COLUMNS = 8192


def row_statistics(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each row, float32 [tokens]: the largest logit, the sum of exp(logit - largest), and the label's logit.

    Args:
        logits: float32 [tokens, columns].
        labels: int64 [tokens], a column, or outside of them: the label's logit is then 0.
    """
    largest = logits.amax(1)
    total = torch.zeros_like(largest)
    for part in torch.split(logits, COLUMNS, 1):
        total += (part - largest[:, None]).exp_().sum(1)
    columns, inside = _within(labels, logits.shape[1])
    return largest, total, logits.gather(1, columns)[:, 0] * inside


def logit_gradients(
    logits: torch.Tensor, labels: torch.Tensor, log_sum: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Gradients [tokens, columns] of the cross-entropy, in place of the logits where `dtype` is float32, which are lost anyway.

    Args:
        logits, labels: see row_statistics; some of the columns will do, with labels that count from the first of them.
        log_sum: float32 [tokens], the logarithm of the softmax's denominator.
    """
    probabilities = logits.sub_(log_sum[:, None]).exp_()
    columns, inside = _within(labels, logits.shape[1])
    return probabilities.scatter_add_(1, columns, -inside[:, None].to(logits.dtype)).to(dtype)


def _within(labels: torch.Tensor, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns [tokens, 1] to look at, and which of them are the labels; no host has to know how many."""
    return labels.clamp(0, columns - 1)[:, None], (labels >= 0) & (labels < columns)

"""Cross-entropy over a vocabulary that is split over tensor-parallel ranks."""

from __future__ import annotations

import torch
from megatron.core import parallel_state, tensor_parallel


def token_loss_sum(
    labels: torch.Tensor, loss_mask: torch.Tensor, vocabulary: int, logits: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
    """Megatron's loss function under `calculate_per_token_loss`: (summed loss, number of targets, what to log).

    Args:
        labels: int64 [1, tokens].
        loss_mask: float [1, tokens].
        vocabulary: size without padding; padded rows are kept out of the softmax, so that the loss doesn't depend on them.
        logits: [1, tokens, this rank's share of the vocabulary].
    """
    logits = logits.float()
    first = parallel_state.get_tensor_model_parallel_rank() * logits.shape[-1]
    padded = torch.arange(first, first + logits.shape[-1], device=logits.device) >= vocabulary
    if padded.any():
        logits = logits.masked_fill(padded, torch.finfo(torch.float32).min)
    losses = tensor_parallel.vocab_parallel_cross_entropy(logits.contiguous(), labels)
    total = (losses * loss_mask).sum()
    targets = loss_mask.sum()
    return total, targets.to(torch.int), {"loss": total.detach(), "targets": targets}

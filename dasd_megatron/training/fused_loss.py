"""Head and cross-entropy in one, in chunks of the vocabulary: no tensor of tokens x vocabulary is ever made.

The logits of a chunk are computed, used and dropped; the backward pass computes them again. Chunks run over the vocabulary,
not over tokens, so that each row of the head's gradient is written once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from dasd_megatron.megatron_model.vocabulary_head import HeadRows, float32_product, whole_hidden_states

# Logits of one chunk: 128 MiB in fp32, whatever the number of tokens.
CHUNK_ELEMENTS = 32 << 20


def loss_sum(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    loss_mask: torch.Tensor,
    vocabulary: int,
    sequence_parallel: bool,
) -> torch.Tensor:
    """Sum of the cross-entropy over this rank's targets, in nats, float32 []. The same on all tensor-parallel ranks.

    Args:
        hidden_states: [tokens, 1, hidden], output of the final norm; with sequence parallelism, this rank's share of tokens.
        weight: [rows, hidden], this tensor-parallel rank's rows of the head.
        labels: int64 [1, tokens].
        loss_mask: float [1, tokens]; positions with 0 cost nothing.
        vocabulary: size without padding; padded rows take no part in the softmax.
    """
    hidden = whole_hidden_states(hidden_states, sequence_parallel)
    head = HeadRows.of(weight, vocabulary)
    targets = loss_mask[0].nonzero()[:, 0]
    losses: torch.Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden.index_select(0, targets), weight, labels[0, targets] - head.first, head.count, head.group
    )
    return torch.dot(losses, loss_mask[0, targets].float())


class _LinearCrossEntropy(torch.autograd.Function):
    """Cross-entropy of each token, float32 [tokens], over a vocabulary whose rows are split over `group`."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor, rows: int, group: dist.ProcessGroup
    ) -> torch.Tensor:
        """`labels` count from this rank's first row; those outside [0, rows) belong to other ranks."""
        tokens = hidden.shape[0]
        running_max = hidden.new_full((tokens,), torch.finfo(torch.float32).min, dtype=torch.float32)
        total = torch.zeros_like(running_max)  # of exp(logit - running_max)
        chosen = torch.zeros_like(running_max)  # the label's logit
        # Softmax in one pass over the vocabulary: the sum so far is rescaled whenever a chunk has a larger logit.
        for start, end in _chunks(tokens, rows):
            logits = float32_product(hidden, weight[start:end].t())
            _take_labels(chosen, logits, labels, start, end)
            new_max = torch.maximum(running_max, logits.amax(1))
            total = total * (running_max - new_max).exp() + logits.sub_(new_max[:, None]).exp_().sum(1)
            running_max = new_max
        # Two collectives of tokens each, instead of the logits: the maximum, then sums relative to it. A label's logit is 0 on
        # all ranks but the one with its row.
        if group.size() > 1:
            own = running_max.clone()
            dist.all_reduce(running_max, op=dist.ReduceOp.MAX, group=group)
            sums = torch.stack([total * (own - running_max).exp(), chosen])
            dist.all_reduce(sums, group=group)
            total, chosen = sums
        log_sum = running_max + total.log()
        ctx.save_for_backward(hidden, weight, labels, log_sum)
        ctx.rows = rows
        return log_sum - chosen

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None, None]:
        """Gradients of the tokens' hidden states (this rank's part of the sum) and of this rank's rows."""
        hidden, weight, labels, log_sum = ctx.saved_tensors
        (grad_losses,) = grads
        grad_hidden = torch.zeros(hidden.shape, dtype=torch.float32, device=hidden.device)
        grad_weight = torch.empty_like(weight)
        grad_weight[ctx.rows :] = 0
        # The gradient of a logit is its probability, less 1 for the label. No collective: what other ranks' rows add to the
        # hidden states' gradient is summed where the hidden states came from (loss_sum).
        for start, end in _chunks(hidden.shape[0], ctx.rows):
            probabilities = float32_product(hidden, weight[start:end].t()).sub_(log_sum[:, None]).exp_()
            here = ((labels >= start) & (labels < end)).nonzero()[:, 0]
            probabilities[here, labels[here] - start] -= 1.0
            grad_logits = probabilities.mul_(grad_losses[:, None]).to(hidden.dtype)
            _add_product(grad_hidden, grad_logits, weight[start:end])
            torch.mm(grad_logits.t(), hidden, out=grad_weight[start:end])
        return grad_hidden.to(hidden.dtype), grad_weight, None, None, None


def _chunks(tokens: int, rows: int) -> Iterator[tuple[int, int]]:
    size = max(1, CHUNK_ELEMENTS // max(1, tokens))
    size = -(-size // 64) * 64  # whole tiles of a matrix product
    return ((start, min(start + size, rows)) for start in range(0, rows, size))


def _take_labels(chosen: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor, start: int, end: int) -> None:
    here = ((labels >= start) & (labels < end)).nonzero()[:, 0]
    chosen[here] = logits[here, labels[here] - start]


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    if left.dtype is torch.float32:
        torch.addmm(total, left, right, out=total)
    else:
        total += float32_product(left, right)

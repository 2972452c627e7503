"""Head and cross-entropy in one, a tile of tokens at a time: no tensor of tokens x vocabulary is ever made.

Once a tile's logits are there, so are their gradients: they are turned into those of hidden states and weights in the forward
pass, and nothing is computed twice. That is three matrix products in all, the fewest there can be.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch.autograd.function import once_differentiable

from dasd_megatron.megatron_model.vocabulary_head import HeadRows, add_product, float32_product, whole_hidden_states
from dasd_megatron.models.loss_tiles import tile_tokens
from dasd_megatron.training.cross_entropy import COLUMNS, logit_gradients, row_statistics


def loss_sum(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    labels: torch.Tensor,
    targets: torch.Tensor,
    vocabulary: int,
    sequence_parallel: bool,
) -> torch.Tensor:
    """Sum of the cross-entropy over this rank's targets, in nats, float32 []. The same on all tensor-parallel ranks.

    The head's gradient is added to `weight.main_grad` (float32) where there is one, as Megatron's buffers are, and no gradient
    of the sum but 1 is then taken.

    Args:
        hidden_states: [tokens, 1, hidden], output of the final norm; with sequence parallelism, this rank's share of tokens.
        weight: [rows, hidden], this tensor-parallel rank's rows of the head.
        labels: int64 [1, tokens].
        targets: int64 [targets], the positions whose labels are learned; others cost nothing.
        vocabulary: size without padding; padded rows take no part in the softmax.
    """
    hidden = whole_hidden_states(hidden_states, sequence_parallel)
    head = HeadRows.of(weight, vocabulary)
    main_grad = getattr(weight, "main_grad", None)
    with_gradients = torch.is_grad_enabled() and hidden.requires_grad
    loss: torch.Tensor = _LinearCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden, weight, targets, labels[0, targets] - head.first, head, main_grad, with_gradients
    )
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    """Sum of the targets' cross-entropy, float32 [], over a vocabulary whose rows are split over ranks."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        targets: torch.Tensor,
        labels: torch.Tensor,
        head: HeadRows,
        main_grad: torch.Tensor | None,
        with_gradients: bool,
    ) -> torch.Tensor:
        """`targets` are rows of `hidden`; their `labels` count from this rank's first row, and may be other ranks'."""
        total = torch.zeros((), dtype=torch.float32, device=hidden.device)
        grad_hidden = torch.zeros_like(hidden) if with_gradients else None
        grad_weight = main_grad
        if with_gradients and main_grad is None:
            grad_weight = torch.zeros(weight.shape, dtype=torch.float32, device=weight.device)
        rows, size = weight[: head.count], tile_tokens("gpu" if hidden.is_cuda else "cpu", head.count)
        # The same memory for every tile: what the system has to clear first costs a CPU half as much as the product.
        memory = torch.empty(min(size, len(targets)), head.count, dtype=torch.float32, device=hidden.device)
        for tile in _slices(len(targets), size):
            states, own = hidden.index_select(0, targets[tile]), labels[tile]
            logits = float32_product(states, rows.t(), out=memory[: len(states)])
            log_sum, chosen = _statistics(logits, own, head.group)
            total += (log_sum - chosen).sum()
            if grad_hidden is not None and grad_weight is not None:
                gradient = _tile_gradients(logits, own, log_sum, states, rows, grad_weight)
                grad_hidden.index_copy_(0, targets[tile], gradient.to(hidden.dtype))
        ctx.grad_hidden, ctx.main_grad = grad_hidden, main_grad
        ctx.grad_weight = None if main_grad is not None or grad_weight is None else grad_weight.to(weight.dtype)
        return total

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of the hidden states (this rank's part of the sum) and of this rank's rows."""
        (grad,) = grads
        nothing = (None,) * 5
        if ctx.main_grad is not None:
            torch._assert_async(
                grad == 1, "the loss is scaled, and the head's gradient was added to main_grad without that"
            )
            return ctx.grad_hidden, None, *nothing
        return ctx.grad_hidden * grad, ctx.grad_weight * grad, *nothing


def _slices(length: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, length)) for start in range(0, length, size))


def _statistics(
    logits: torch.Tensor, labels: torch.Tensor, group: dist.ProcessGroup
) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each token over all ranks, float32 [tokens]: the logarithm of the softmax's denominator, and the label's logit."""
    largest, total, chosen = (_kernels()[0] if logits.is_cuda else row_statistics)(logits, labels)
    # Two collectives of tokens each, instead of the logits: the maximum, then sums relative to it. A label's logit is 0 on
    # all ranks but the one with its row.
    if group.size() > 1:
        own = largest.clone()
        dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
        sums = torch.stack([total * (own - largest).exp(), chosen])
        dist.all_reduce(sums, group=group)
        total, chosen = sums
    return largest + total.log(), chosen


def _tile_gradients(
    logits: torch.Tensor,
    labels: torch.Tensor,
    log_sum: torch.Tensor,
    states: torch.Tensor,
    rows: torch.Tensor,
    grad_weight: torch.Tensor,
) -> torch.Tensor:
    """The gradient of a tile's hidden states, float32 [tokens, hidden]; that of the rows is added to theirs. The logits are lost.

    No collective: what other ranks' rows add to the hidden states' gradient is summed where those came from (loss_sum).
    """
    gradients = _kernels()[1] if logits.is_cuda else logit_gradients
    grad_states = torch.zeros(states.shape, dtype=torch.float32, device=states.device)
    for columns in _slices(logits.shape[1], COLUMNS):
        part = gradients(logits[:, columns], labels - columns.start, log_sum, states.dtype)
        add_product(grad_states, part, rows[columns])
        add_product(grad_weight[columns], part.t(), states)
    return grad_states


def _kernels() -> tuple[Any, Any]:
    """What does these two things on a GPU, in one pass over the logits each; without Triton the same as on a CPU."""
    if importlib.util.find_spec("triton") is None:
        return row_statistics, logit_gradients
    from dasd_megatron.training import cross_entropy_kernels

    return cross_entropy_kernels.fused_row_statistics, cross_entropy_kernels.fused_logit_gradients

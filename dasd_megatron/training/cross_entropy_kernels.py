"""Triton kernels for cross_entropy's two functions: each reads the logits once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# Columns that a program works on at a time.
BLOCK = 4096


@triton.jit  # type: ignore[untyped-decorator]
def _row_statistics(logits, labels, largest, total, chosen, columns, stride, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """A program a row: the maximum and the sum relative to it, which is rescaled whenever a block has a larger logit."""
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels + row)
    start = logits + row * stride
    high = float("-inf")
    sum_of_exp = 0.0
    for first in range(0, columns, BLOCK):
        at = first + tl.arange(0, BLOCK)
        block = tl.load(start + at, mask=at < columns, other=float("-inf"))
        new = tl.maximum(high, tl.max(block, 0))
        sum_of_exp = sum_of_exp * tl.exp(high - new) + tl.sum(tl.exp(block - new), 0)
        high = new
    tl.store(largest + row, high)
    tl.store(total + row, sum_of_exp)
    inside = (label >= 0) & (label < columns)
    tl.store(chosen + row, tl.load(start + label, mask=inside, other=0.0))


@triton.jit  # type: ignore[untyped-decorator]
def _logit_gradients(logits, labels, log_sum, gradients, columns, stride, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """A program a row and block."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    block = tl.load(logits + row * stride + at, mask=at < columns, other=float("-inf"))
    gradient = tl.exp(block - tl.load(log_sum + row)) - tl.where(at == tl.load(labels + row), 1.0, 0.0)
    tl.store(gradients + row * columns + at, gradient.to(gradients.dtype.element_ty), mask=at < columns)


def fused_row_statistics(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Of each row: the largest logit, the sum of exp(logit - largest), and the label's logit, as row_statistics."""
    tokens, columns = logits.shape
    largest, total, chosen = logits.new_empty(3, tokens)
    if tokens:
        _row_statistics[(tokens,)](logits, labels, largest, total, chosen, columns, logits.stride(0), BLOCK=BLOCK)
    return largest, total, chosen


def fused_logit_gradients(
    logits: torch.Tensor, labels: torch.Tensor, log_sum: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Gradients of the cross-entropy, as logit_gradients; the logits stay as they are."""
    tokens, columns = logits.shape
    gradients = torch.empty(tokens, columns, dtype=dtype, device=logits.device)
    if tokens:
        grid = (tokens, triton.cdiv(columns, BLOCK))
        _logit_gradients[grid](logits, labels, log_sum, gradients, columns, logits.stride(0), BLOCK=BLOCK)
    return gradients

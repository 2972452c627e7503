"""Attention with sinks on a CPU: torch's fused kernel, without the square of the length in memory.

A sink is a logit of a head that takes part in the softmax of all its queries and has no value. It only lowers the other
probabilities. With s the sink and L the log of the sum of exponentiated scores, all are multiplied by exp(L - L'), where
L' = log(exp(L) + exp(s)).
"""

from __future__ import annotations

from typing import Any

import torch

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def sink_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sinks: torch.Tensor,
    mask: torch.Tensor | None,
    scale: float | None,
) -> torch.Tensor:
    """Causal where `mask` is None. Tensors are [batch, heads, tokens, head_dim], with fewer heads of keys and values.

    Args:
        sinks: a logit each head; the scale doesn't apply to them.
        mask: added to scores [queries, keys].
    """
    attended: torch.Tensor = _SinkAttention.apply(query, key, value, sinks, mask, scale)  # type: ignore[no-untyped-call]
    return attended


class _SinkAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        sinks: torch.Tensor,
        mask: torch.Tensor | None,
        scale: float | None,
    ) -> torch.Tensor:
        output, log_sum = _forward(query, key, value, 0.0, mask is None, attn_mask=mask, scale=scale)
        with_sink = torch.logaddexp(log_sum, sinks.to(log_sum.dtype)[:, None])
        scaled: torch.Tensor = output * (log_sum - with_sink).exp()[..., None].to(output.dtype)
        ctx.save_for_backward(query, key, value, sinks, mask, scaled, with_sink)
        ctx.scale = scale
        return scaled

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The kernel's own backward pass, given the probabilities' true denominator and the true output, is the right one.

        It takes the gradient of a score to be p (dp - sum of all p dp), with p from the denominator and the sum from the
        product of output and gradient. The sink has such a term, too, and its dp is zero.
        """
        query, key, value, sinks, mask, output, with_sink = ctx.saved_tensors
        gradients = _backward(
            gradient, query, key, value, output, with_sink, 0.0, mask is None, attn_mask=mask, scale=ctx.scale
        )
        probability = (sinks.to(with_sink.dtype)[:, None] - with_sink).exp()
        sums = (output.to(with_sink.dtype) * gradient.to(with_sink.dtype)).sum(-1)
        return *gradients, -(probability * sums).sum((0, 2)).to(sinks.dtype), None, None

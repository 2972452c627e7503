"""Recomputation of experts alone: what they keep is computed again, the exchange of tokens between ranks isn't done again.

Megatron's own (`recompute_modules: moe`) begins before the router and does both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core import parallel_state, tensor_parallel
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.moe.moe_layer import MoELayer


def recompute_experts(model: GPTModel) -> None:
    """Lets the experts of each layer keep their input alone: the tokens that came to this rank."""
    for module in model.modules():
        if isinstance(module, MoELayer):
            module.experts.forward = _recomputed(module.experts, module.experts.forward)


def _recomputed(experts: Any, forward: Callable[..., Any]) -> Callable[..., Any]:
    def checkpointed(*inputs: torch.Tensor) -> Any:
        if not (torch.is_grad_enabled() and experts.training):
            return forward(*inputs)
        if experts.config.fp8:
            from megatron.core.extensions.transformer_engine import te_checkpoint

            tracker, group = (
                tensor_parallel.random.get_cuda_rng_tracker,
                parallel_state.get_tensor_model_parallel_group(),
            )
            return te_checkpoint(forward, False, tracker, group, *inputs)
        return tensor_parallel.checkpoint(forward, False, *inputs)

    return checkpointed

"""Scales and histories of delayed FP8 scaling, in checkpoints as plain tensors.

Transformer Engine's own form of them is a pickle, which may run code, and which it refuses to load. The largest values are taken
over all ranks of a pipeline stage, so all of them have the same scales: they are named by layer, and any layout can load them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.models.gpt import GPTModel

# Tensors of a matrix product that are scaled: input, weight and output; the gradients of output and input.
TENSORS = {"scaling_fwd": 3, "scaling_bwd": 2}


def sharded_scales(chunks: Sequence[GPTModel], is_loading: bool = False) -> dict[str, ShardedObject]:
    """What each module keeps, to save or to load; empty without delayed scaling."""
    stage = parallel_state.get_tensor_and_data_parallel_group(with_context_parallel=True)
    return {
        name: ShardedObject(f"fp8.{name}", None if is_loading else _state(module), (1,), (0,), dist.get_rank(stage))
        for name, module in _modules(chunks)
    }


def set_scales(chunks: Sequence[GPTModel], loaded: Mapping[str, Any]) -> None:
    """Takes up what `sharded_scales` saved."""
    from megatron.core.fp8_utils import get_fp8_recipe

    for name, module in _modules(chunks):
        recipe = get_fp8_recipe(chunks[0].config)
        # As at the first forward pass, which then leaves them as they are.
        module.fp8_meta |= {"recipe": recipe, "num_gemms": getattr(module, "num_gemms", 1)}
        module.init_fp8_meta_tensors(recipe)
        for direction, tensors in TENSORS.items():
            for kind, own in _kept(module.fp8_meta[direction]).items():
                own.copy_(_for_gemms(loaded[name][direction][kind], own, tensors))


@contextlib.contextmanager
def unchanged_scales(chunks: Sequence[GPTModel]) -> Iterator[None]:
    """For passes that training must not depend on: Transformer Engine's kernels note the largest values in inference, too."""
    metas = [module.fp8_meta[direction] for _, module in _modules(chunks) for direction in TENSORS]
    kept = [tensor for meta in metas for tensor in _kept(meta).values()]
    before = [tensor.clone() for tensor in kept]
    yield
    for tensor, value in zip(kept, before, strict=True):
        tensor.copy_(value)


def _modules(chunks: Sequence[GPTModel]) -> Iterator[tuple[str, Any]]:
    """Those that multiply in FP8 with delayed scaling, by the number of their layer in the whole model."""
    config = chunks[0].config
    if not config.fp8 or config.fp8_recipe != "delayed":
        return
    import transformer_engine.pytorch as te

    for chunk in chunks:
        for layer in chunk.decoder.layers:
            for name, module in layer.named_modules():
                if isinstance(module, (te.Linear, te.LayerNormLinear, te.GroupedLinear)):
                    yield f"layers.{layer.layer_number - 1}.{name}", module


def _state(module: Any) -> dict[str, dict[str, torch.Tensor]]:
    return {
        direction: {kind: tensor.cpu() for kind, tensor in _kept(module.fp8_meta[direction]).items()}
        for direction in TENSORS
    }


def _kept(scaling: Any) -> dict[str, torch.Tensor]:
    return {"scale": scaling.scale, "amax_history": scaling.amax_history}


def _for_gemms(saved: torch.Tensor, own: torch.Tensor, tensors: int) -> torch.Tensor:
    """Grouped experts have a column for each tensor and expert: with another number of them, each gets what is safe for all."""
    if saved.shape == own.shape:
        return saved
    of_experts = saved.view(*saved.shape[:-1], tensors, -1)
    safest = of_experts.amin(-1) if saved.dim() == 1 else of_experts.amax(-1)  # scales, and largest values
    return safest.repeat_interleave(own.shape[-1] // tensors, -1)

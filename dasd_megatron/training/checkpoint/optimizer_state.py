"""Optimizer state in checkpoints: tensors by the parameter they belong to, so that any layout can load them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import merge
from megatron.core.dist_checkpointing.utils import extract_sharded_base
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.cpu_offloading import HybridDeviceOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from dasd_megatron.cpu_backend.megatron_without_cuda import optimizer_checks

METADATA = {
    # Whole parameters rather than pieces of this layout's buffers.
    "distrib_optim_sharding_type": "fully_reshardable",
    # With experts split over ranks Megatron chains two optimizers; a parameter's state is named alike in both and in one.
    "chained_optim_avoid_prefix": True,
}


def sharded_state(
    optimizer: MegatronOptimizer, weights: dict[str, Any], metadata: Mapping[str, Any], is_loading: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sharded tensors to save or to load, and the rest, which is this layout's own; collective.

    The rest is not saved: groups of parameters depend on the layout, rates and the count of updates follow from the step.
    """
    with optimizer_checks():
        state = optimizer.sharded_state_dict(weights, is_loading=is_loading, metadata={**metadata, **METADATA})
    sharded, own = extract_sharded_base(state)
    return sharded, own


def restore(optimizer: MegatronOptimizer, loaded: dict[str, Any], own: dict[str, Any], step: int) -> None:
    """Restores the state after `step` updates: loaded tensors, and what `sharded_state` called this layout's own."""
    state = merge(own, loaded)
    for group in _groups(state):
        group["step"] = step
    with optimizer_checks():
        optimizer.load_state_dict(state)
    for part in _parts(optimizer):
        if isinstance(part.optimizer, HybridDeviceOptimizer):
            # Its optimizers of host and GPU count for themselves; a count here would be given to them before every update.
            for group in part.optimizer.param_groups:
                group.pop("step", None)


def _groups(state: Any) -> Iterator[dict[str, Any]]:
    """All groups of parameters in an optimizer's state, chained or not."""
    if isinstance(state, dict):
        yield from state.get("param_groups", ())
        for value in state.values():
            yield from _groups(value)


def _parts(optimizer: MegatronOptimizer) -> list[Any]:
    """With experts split over ranks there are two."""
    parts: list[Any] = getattr(optimizer, "chained_optimizers", [optimizer])
    return parts


def keep_buckets_in_place(optimizer: MegatronOptimizer) -> None:
    """Fixes what the distributed optimizer gathers for a checkpoint where a buffer has several buckets.

    Megatron gathers a buffer without the padding between its buckets (`get_parameter_state_dp_zero`), and then cuts parameters
    out of it at their places in the padded buffer (`sharded_param_state_fully_reshardable`): all parameters behind the
    first bucket would be saved shifted. A tied embedding with pipeline parallelism has a bucket of its own.
    """
    for part in _parts(optimizer):
        if isinstance(part, DistributedOptimizer):
            part.get_parameter_state_dp_zero = _padded(part, part.get_parameter_state_dp_zero)


def _padded(optimizer: DistributedOptimizer, gather: Callable[..., Any]) -> Callable[..., Any]:
    def gather_padded(*args: Any, **kwargs: Any) -> Any:
        state = gather(*args, **kwargs)
        if state is None:  # on ranks that nothing is gathered on
            return None
        for number, buffer in enumerate(optimizer.buffers):
            for tensors in state[number].values():
                for key, tensor in tensors.items():
                    if torch.is_tensor(tensor):
                        tensors[key] = _with_padding(tensor, buffer)
        return state

    return gather_padded


def _with_padding(tensor: torch.Tensor, buffer: Any) -> torch.Tensor:
    """A buffer's content [numel_unpadded], put where its buckets lie: [numel]."""
    padded, start = tensor.new_zeros(buffer.numel), 0
    for bucket in buffer.buckets:
        padded[bucket.offset : bucket.offset + bucket.numel_unpadded] = tensor[start : start + bucket.numel_unpadded]
        start += bucket.numel_unpadded
    return padded

"""Optimizer state in checkpoints: tensors by the parameter they belong to, so that any layout can load them.

With the distributed optimizer each rank writes and reads the range of elements that it updates, and nothing is gathered.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megatron.core.dist_checkpointing.dict_utils import merge, nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.dist_checkpointing.utils import extract_sharded_base
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.cpu_offloading import HybridDeviceOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from dasd_megatron.cpu_backend.megatron_without_cuda import optimizer_checks
from dasd_megatron.megatron_model.tensor_shares import parts_of
from dasd_megatron.megatron_model.weights import save_metadata

# Of each parameter: the master weights, and Adam's averages.
_KEPT = ("param", "exp_avg", "exp_avg_sq")


def sharded_state(
    optimizer: MegatronOptimizer, weights: dict[str, Any], is_loading: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Sharded tensors to save or to load, and the rest, which is this layout's own; collective.

    `weights`: of the model, see sharded_weights. The rest is not saved: groups of parameters depend on the layout, rates and the
    count of updates follow from the step.
    """
    with optimizer_checks():
        if not isinstance(_parts(optimizer)[0], DistributedOptimizer):
            state = optimizer.sharded_state_dict(weights, is_loading=is_loading, metadata=save_metadata())
            sharded, own = extract_sharded_base(state)
            return sharded, own
        if is_loading:  # which makes the tensors to load into
            for part in _parts(optimizer):
                part.load_state_dict(part.state_dict())
    tensors = [tensor for part in _parts(optimizer) for tensor in _own_ranges(part, weights)]
    return {str(number): tensor for number, tensor in enumerate(tensors)}, {}


def _own_ranges(part: DistributedOptimizer, weights: dict[str, Any]) -> Iterator[ShardedTensor]:
    """The optimizer's own tensors, which hold ranges of parameters."""
    bases = {
        base.data: base for base in nested_values(weights) if isinstance(base, ShardedTensor | ShardedTensorFactory)
    }
    for parameter in part.model_param_gbuf_map:
        start = part._get_model_param_range_map(parameter)["param"].start
        state = part._get_main_param_and_optimizer_states(parameter)
        for kind in _KEPT:
            yield from parts_of(bases[parameter], start, state[kind].detach(), f"optimizer.state.{kind}.")


def restore(optimizer: MegatronOptimizer, loaded: dict[str, Any], own: dict[str, Any], step: int) -> None:
    """Takes up the state after `step` updates: loaded tensors, and what `sharded_state` called this layout's own."""
    parts = _parts(optimizer)
    distributed = isinstance(parts[0], DistributedOptimizer)  # its tensors were loaded in place
    states = [part.state_dict() for part in parts] if distributed else [merge(own, loaded)]
    with optimizer_checks():
        for target, state in zip(parts if distributed else [optimizer], states, strict=True):
            for group in _groups(state):
                group["step"] = step
            target.load_state_dict(state)
    for part in parts:
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

"""The weights of a model's chunks: their names in checkpoints, which don't depend on the layout, and loading them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.models.gpt import GPTModel
from torch.distributed.checkpoint.api import CheckpointException

from dasd_megatron.megatron_model.checkpoint_reader import use_checked_reader
from dasd_megatron.megatron_model.collectives import raise_on_all_ranks
from dasd_megatron.megatron_model.tensor_shares import parts_of, shares
from dasd_megatron.models.checkpoint_index import read_index
from dasd_megatron.utils.errors import UserError

# Transformer Engine's; those of grouped experts have a number.
_EXTRA_STATE = re.compile(r"\._extra_state\d*$")

use_checked_reader()


def load_weights(chunks: Sequence[GPTModel], folder: Path) -> None:
    """Loads weights written in any layout; called on every rank."""
    weights = sharded_weights(chunks)
    load_sharded({"weights": own_shares(weights)}, folder)
    exchange_shares(weights)


def sharded_weights(chunks: Sequence[GPTModel]) -> dict[str, Any]:
    """Weights by chunk; inside, tensors have names that don't depend on the layout. They are the model's own, not copies.

    Transformer Engine's extra states are left empty: they are pickles (training/checkpoint/fp8_scales.py has what is in them).
    """
    state = {f"model{n}": chunk.sharded_state_dict(metadata=save_metadata()) for n, chunk in enumerate(chunks)}
    for part in state.values():
        for name in filter(_EXTRA_STATE.search, part):
            part[name].data = torch.empty(0, dtype=torch.uint8)
    tensors = {id(tensor) for chunk in chunks for tensor in (*chunk.parameters(), *chunk.buffers())}
    assert all(id(base.data) in tensors for base in _bases(state)), "what is loaded into a copy is lost"
    return state


def saved_weights(weights: dict[str, Any]) -> dict[str, Any]:
    """What this rank writes of `sharded_weights`: its share, and the extra states, which Megatron's own readers ask for."""
    extra = {
        f"{chunk}.{name}": value
        for chunk, part in weights.items()
        for name, value in part.items()
        if _EXTRA_STATE.search(name)
    }
    return {"weights": own_shares(weights), "extra_states": extra}


def own_shares(weights: dict[str, Any]) -> dict[str, ShardedTensor]:
    """This rank's share of the weights that it has in common with other data-parallel ranks, to be saved or to be loaded."""
    parts = [
        part
        for group, bases in _in_common(weights)
        for number, start, end in _shares(bases, group)[dist.get_rank(group)]
        for part in parts_of(bases[number], start, _flat(bases[number])[start:end])
    ]
    return {str(number): part for number, part in enumerate(parts)}


def exchange_shares(weights: dict[str, Any]) -> None:
    """Gives every rank the shares that others have loaded; called on every rank."""
    for group, bases in _in_common(weights):
        if dist.get_world_size(group) == 1:
            continue
        for rank, share in enumerate(_shares(bases, group)):
            for number, start, end in share:
                dist.broadcast(_flat(bases[number])[start:end], group=group, group_src=rank)


def _in_common(
    weights: dict[str, Any],
) -> Iterator[tuple[dist.ProcessGroup, list[ShardedTensor | ShardedTensorFactory]]]:
    """Weights, with the ranks that have the same ones: of experts, others."""
    experts = [base for base in _bases(weights) if not getattr(base.data, "allreduce", True)]
    others = [base for base in _bases(weights) if getattr(base.data, "allreduce", True)]
    yield parallel_state.get_data_parallel_group(with_context_parallel=True), others
    yield parallel_state.get_expert_data_parallel_group(), experts


def _bases(weights: dict[str, Any]) -> list[ShardedTensor | ShardedTensorFactory]:
    """Of all parameters, without extra states."""
    return [base for base in nested_values(weights) if isinstance(base, ShardedTensor | ShardedTensorFactory)]


def _shares(bases: Sequence[ShardedTensor | ShardedTensorFactory], group: dist.ProcessGroup) -> list[Any]:
    return shares([base.data.numel() for base in bases], dist.get_world_size(group))


def _flat(base: ShardedTensor | ShardedTensorFactory) -> torch.Tensor:
    """A view of the model's own tensor."""
    flat: torch.Tensor = base.data.detach().view(-1)
    return flat


def save_metadata() -> dict[str, Any]:
    """What Megatron's sharded state dicts have to be told: over which ranks optimizer state is sharded."""
    return {"dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}


def load_sharded(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The tensors that `state` describes, from a checkpoint written in any layout; called on every rank.

    Raises UserError on all of them where it is damaged: each rank reads its own share, and may be the only one to see it.
    """
    loaded: dict[str, Any] = {}
    failure: UserError | None = None
    try:
        with reading(folder):
            loaded = dist_checkpointing.load(state, str(folder))
    except UserError as error:
        failure = error
    raise_on_all_ranks(failure)
    return loaded


@contextlib.contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Turns what goes wrong while `folder` is read into a UserError."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such checkpoint")
    read_index(folder)
    try:
        yield
    except (Exception, CheckpointException) as error:  # many kinds, for damaged checkpoints and those of another model
        failures = error.failures.values() if isinstance(error, CheckpointException) else ()
        reason = str(next((failure for failure, _ in failures), error)).strip().splitlines()[-1]
        raise UserError(f"{folder}: can't be loaded as a checkpoint of this model: {reason}") from error

"""The weights of a model's chunks: their names in checkpoints, which don't depend on the layout, and loading them."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.models.gpt import GPTModel
from torch.distributed.checkpoint.api import CheckpointException

from dasd_megatron.models.checkpoint_index import read_index
from dasd_megatron.utils.errors import UserError

# Transformer Engine's; those of grouped experts have a number.
_EXTRA_STATE = re.compile(r"\._extra_state\d*$")


def load_weights(chunks: Sequence[GPTModel], folder: Path) -> None:
    """Loads weights written in any layout; called on every rank."""
    read_index(folder)  # Megatron reads it, too, but as a pickle that may run code
    set_weights(chunks, load_sharded(sharded_weights(chunks), folder))


def sharded_weights(chunks: Sequence[GPTModel]) -> dict[str, Any]:
    """Weights by chunk; inside, tensors have names that don't depend on the layout.

    Transformer Engine's extra states are left empty: they are pickles (training/checkpoint/fp8_scales.py has what is in them).
    """
    state = {f"model{n}": chunk.sharded_state_dict(metadata=save_metadata()) for n, chunk in enumerate(chunks)}
    for part in state.values():
        for name in filter(_is_extra_state, part):
            part[name].data = _nothing()
    return state


def set_weights(chunks: Sequence[GPTModel], state: Mapping[str, Any]) -> None:
    """Puts loaded weights into the chunks."""
    for number, chunk in enumerate(chunks):
        part = state[f"model{number}"]
        chunk.load_state_dict({name: _nothing() if _is_extra_state(name) else value for name, value in part.items()})


def _is_extra_state(name: str) -> bool:
    return bool(_EXTRA_STATE.search(name))


def _nothing() -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8)


def save_metadata() -> dict[str, Any]:
    """What Megatron's sharded state dicts have to be told: over which ranks optimizer state is sharded."""
    return {"dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}


def load_sharded(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The tensors that `state` describes, from a checkpoint written in any layout. Raises UserError where it is damaged."""
    with reading(folder):
        loaded: dict[str, Any] = dist_checkpointing.load(state, str(folder))
    return loaded


@contextlib.contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Turns what goes wrong while `folder` is read into a UserError."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such checkpoint")
    try:
        yield
    except (Exception, CheckpointException) as error:  # many kinds, for damaged checkpoints and those of another model
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"{folder}: can't be loaded as a checkpoint of this model: {reason}") from error

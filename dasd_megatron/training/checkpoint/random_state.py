"""States of every random generator of a rank, for checkpoints.

A stage that resumes in another layout keeps the states that its start seeded: they belong to places in a layout. Nothing in
training depends on them; dropout is 0, and the order of the data depends on the seed alone.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.tensor_parallel.random import get_cuda_rng_tracker


def random_states() -> dict[str, Any]:
    """This rank's states, copied, as plain values and tensors."""
    numpy: Any = np.random.get_state()
    tracked = get_cuda_rng_tracker().get_states()
    states = {
        "python": random.getstate(),
        "numpy": (numpy[1].tolist(), *numpy[2:]),
        "torch": torch.get_rng_state(),
        "megatron": {name: state.clone() for name, state in tracked.items()},  # dropout, by tensor-parallel rank
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Takes states of `random_states` up again."""
    random.setstate(states["python"])
    keys, *rest = states["numpy"]
    np.random.set_state(("MT19937", keys, *rest))
    torch.set_rng_state(states["torch"])
    get_cuda_rng_tracker().set_states(states["megatron"])
    if torch.cuda.is_available() and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"])


def layout() -> list[int]:
    """Sizes of the layout whose places random states belong to: pipeline, tensor, and data with context."""
    return [
        parallel_state.get_pipeline_model_parallel_world_size(),
        parallel_state.get_tensor_model_parallel_world_size(),
        parallel_state.get_data_parallel_world_size(with_context_parallel=True),
    ]


def sharded(states: dict[str, Any] | None) -> ShardedObject:
    """`states` at this rank's place in the checkpoint; None to load them from there."""
    place = (
        parallel_state.get_pipeline_model_parallel_rank(),
        parallel_state.get_tensor_model_parallel_rank(),
        parallel_state.get_data_parallel_rank(with_context_parallel=True),
    )
    return ShardedObject("random", states, tuple(layout()), place)

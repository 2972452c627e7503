"""What a stage says where its memory doesn't suffice."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from dasd_megatron.utils.errors import UserError

# In messages of allocations that fail without a type of their own: on a CPU; of CUDA and NCCL; of cuBLAS.
WORDS = ("can't allocate memory", "out of memory", "ALLOC_FAILED")


@contextlib.contextmanager
def memory_or_error(name: str, context_length: int) -> Iterator[None]:
    """Raises UserError in place of an error of an allocator's. `context_length`: tokens of a full pack."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        is_allocation = isinstance(error, (torch.OutOfMemoryError, MemoryError)) or any(
            words in str(error) for words in WORDS
        )
        if not is_allocation:
            raise
        raise UserError(
            f"{name}: out of memory, with packs of {context_length:,} tokens ({str(error).splitlines()[0]}); raise "
            "parallel.context, tensor or pipeline, or set memory.recompute or memory.offload_optimizer (`dasd train --estimate` "
            "says what each of them takes)"
        ) from error

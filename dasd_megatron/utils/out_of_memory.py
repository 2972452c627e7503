"""What is said where memory doesn't suffice, in place of an allocator's error."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from dasd_megatron.utils.errors import UserError

# In messages of allocations that fail: of CUDA, NCCL and vLLM; on a CPU; of cuBLAS. An "illegal memory access" is something else.
WORDS = ("out of memory", "can't allocate memory", "ALLOC_FAILED")


@contextlib.contextmanager
def memory_or_error(what: str, remedy: str) -> Iterator[None]:
    """Raises UserError, `what: out of memory (reason); remedy`, where an allocation fails."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error).strip()
        if not isinstance(error, MemoryError) and not any(words in text for words in WORDS):
            raise
        reason = f" ({text.splitlines()[0]})" if text else ""
        raise UserError(f"{what}: out of memory{reason}; {remedy}") from error

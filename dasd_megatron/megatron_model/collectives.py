"""Agreement between ranks: one failure, or one maximum, for all of them."""

from __future__ import annotations

import torch
import torch.distributed as dist

from dasd_megatron.utils.errors import UserError


def raise_on_all_ranks(failure: UserError | None) -> None:
    """Raises on every rank what went wrong on any of them; a rank that continued alone would wait for ever."""
    failures: list[UserError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(failures, failure)
    for found in failures:
        if found is not None:
            raise found


def all_reduce_max(*values: int) -> list[int]:
    """The largest of each value over all ranks, in one small collective."""
    tensor = torch.tensor(values)  # in host memory: gloo's, so that no GPU has to wait for it
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return [int(value) for value in tensor]

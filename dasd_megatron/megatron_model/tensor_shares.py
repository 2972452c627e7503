"""Parts of a checkpoint's tensors: any range of a tensor's elements, cut into boxes that a reader of any layout understands.

Megatron describes what a rank holds of a tensor by a ShardedTensor. A data-parallel rank holds a range of a parameter's elements,
in row-major order: a part of a row, whole rows, and a part of another row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory


def tensors_of(base: ShardedTensor | ShardedTensorFactory) -> Iterator[tuple[int, ShardedTensor]]:
    """The checkpoint's tensors that a parameter is a part of, each with its place: the number of elements before it.

    It is one, or two for gate and up projection, which Megatron keeps in one parameter.
    """
    parameter = base.data.detach()
    built = [base] if isinstance(base, ShardedTensor) else nested_values(replace(base, data=parameter).build())
    for tensor in built:
        assert tensor.data.is_contiguous(), f"{tensor.key} isn't a range of its parameter's elements"
        yield tensor.data.storage_offset() - parameter.storage_offset(), tensor


def parts_of(
    base: ShardedTensor | ShardedTensorFactory, start: int, values: torch.Tensor, prefix: str = ""
) -> Iterator[ShardedTensor]:
    """What `values`, flat, are in a checkpoint: the elements from `start` on of the parameter that `base` describes.

    The parts are views of `values`: what is loaded into them is loaded into those. Their names get `prefix`.
    """
    end = start + values.numel()
    for place, whole in tensors_of(base):
        first, last = max(start, place), min(end, place + whole.data.numel())
        if first < last:
            yield from _boxes(whole, first - place, values[first - start : last - start], prefix)


def _boxes(whole: ShardedTensor, start: int, values: torch.Tensor, prefix: str) -> Iterator[ShardedTensor]:
    """`values` as the elements of `whole` from `start` on."""
    # Axes by which Megatron stacks tensors (experts) are axes like others here.
    shape = (1,) * whole.prepend_axis_num + tuple(whole.local_shape)
    at = 0
    for offset, size in rectangles(shape, start, start + values.numel()):
        data = values[at : at + prod(size)].view(size)
        at += data.numel()
        yield ShardedTensor(
            prefix + whole.key,
            data,
            data.dtype,
            size,
            whole.global_shape,
            tuple(a + b for a, b in zip(whole.global_offset, offset, strict=True)),
            axis_fragmentations=None,  # no regular grid
            # Of what data-parallel ranks have in common, each has its own share.
            replica_id=(*whole.replica_id[:-1], 0),
            allow_shape_mismatch=whole.allow_shape_mismatch,
        )


def rectangles(shape: Sequence[int], start: int, end: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Offsets and sizes of boxes that hold the elements `start` to `end` of a tensor in row-major order, one after the other."""
    if start >= end:
        return
    if len(shape) == 1:
        yield (start,), (end - start,)
        return
    row = prod(shape[1:])
    first, last = -(-start // row), end // row  # whole rows
    if start < first * row:
        yield from _in_row(shape, first - 1, start, min(end, first * row))
    if first < last:
        yield (first, *(0 for _ in shape[1:])), (last - first, *shape[1:])
    if max(start, last * row) < end and last >= first:
        yield from _in_row(shape, last, last * row, end)


def _in_row(
    shape: Sequence[int], number: int, start: int, end: int
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    before = number * prod(shape[1:])
    for offset, size in rectangles(shape[1:], start - before, end - before):
        yield (number, *offset), (1, *size)


def shares(sizes: Sequence[int], ranks: int) -> list[list[tuple[int, int, int]]]:
    """Splits parameters of these numbers of elements over ranks, as one row of elements cut into equal lengths.

    Returns, of each rank, the number of each parameter that it has a part of, and the elements from which and to which.
    """
    total = sum(sizes)
    bounds = [total * rank // ranks for rank in range(1, ranks + 1)]
    found: list[list[tuple[int, int, int]]] = [[] for _ in range(ranks)]
    rank, before = 0, 0  # elements of the parameters before
    for number, size in enumerate(sizes):
        start = 0
        while start < size:
            while bounds[rank] <= before + start:
                rank += 1
            end = min(size, bounds[rank] - before)
            found[rank].append((number, start, end))
            start = end
        before += size
    return found

"""Shares of parameters: every element belongs to one rank, and the boxes of a range are that range."""

from __future__ import annotations

from math import prod

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dasd_megatron.megatron_model.tensor_shares import rectangles, shares

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@given(shape=SHAPES, data=st.data())
def test_boxes_are_the_range(shape: list[int], data: st.DataObject) -> None:
    start = data.draw(st.integers(0, prod(shape)))
    end = data.draw(st.integers(start, prod(shape)))
    whole = np.arange(prod(shape)).reshape(shape)
    boxes = list(rectangles(shape, start, end))
    found = [whole[tuple(slice(a, a + n) for a, n in zip(offset, size, strict=True))].ravel() for offset, size in boxes]
    assert np.concatenate([np.empty(0, int), *found]).tolist() == list(range(start, end))
    assert len(boxes) <= 2 * len(shape) - 1
    assert len({offset for offset, _ in boxes}) == len(boxes)


@given(sizes=st.lists(st.integers(1, 40), max_size=8), ranks=st.integers(1, 6))
def test_shares_are_equal_and_whole(sizes: list[int], ranks: int) -> None:
    found = shares(sizes, ranks)
    pieces = [piece for share in found for piece in share]
    elements = [(number, element) for number, start, end in pieces for element in range(start, end)]
    assert elements == [(number, element) for number, size in enumerate(sizes) for element in range(size)]
    lengths = [sum(end - start for _, start, end in share) for share in found]
    assert max(lengths) - min(lengths) <= 1

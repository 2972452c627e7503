"""Conversion tables: what goes to Megatron comes back."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from dasd_megatron.models.parameter_mapping import GateUpMapping, QKVMapping
from dasd_megatron.models.shape import ModelShape

shapes = st.builds(
    lambda groups, per_group, head_dim: ModelShape(1, 8, groups * per_group, groups, head_dim, 16, 10),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 5),
)


@given(shapes)
def test_qkv_round_trip(shape: ModelShape) -> None:
    query = torch.randn(shape.heads * shape.head_dim, shape.hidden)
    key, value = (torch.randn(shape.query_groups * shape.head_dim, shape.hidden) for _ in range(2))
    entry = QKVMapping("m", "q", "k", "v")
    merged = entry.to_megatron((query, key, value), shape)
    for ours, theirs in zip(entry.to_hf(merged, shape), (query, key, value), strict=True):
        assert torch.equal(ours, theirs)


def test_gate_up_round_trip() -> None:
    gate, up = torch.randn(3, 2), torch.randn(3, 2)
    entry = GateUpMapping("m", "g", "u")
    assert all(map(torch.equal, entry.to_hf(entry.to_megatron((gate, up), None), None), (gate, up)))  # type: ignore[arg-type]

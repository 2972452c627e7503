"""Unpacked MXFP4 weights against transformers' own code."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from dasd_megatron.models.mxfp4 import unpack


def random_bytes(*sizes: int, seed: int) -> torch.Tensor:
    return torch.randint(0, 256, sizes, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def check(blocks: torch.Tensor, scales: torch.Tensor) -> None:
    """Bit for bit: where both are NaN, or zeros of different signs, a comparison of values would say something else."""
    ours, theirs = unpack(blocks, scales), convert_moe_packed_tensors(blocks, scales).mT
    assert ours.dtype is torch.bfloat16
    assert torch.equal(ours.view(torch.int16), theirs.contiguous().view(torch.int16))
    for expert in range(len(blocks)):
        assert torch.equal(unpack(blocks[expert], scales[expert]).view(torch.int16), ours[expert].view(torch.int16))


@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 3), st.integers(0, 2**31))
def test_equals_transformers(experts: int, rows: int, groups: int, seed: int) -> None:
    scales = random_bytes(experts, rows, groups, seed=seed + 1)
    check(random_bytes(experts, rows, groups, 16, seed=seed), scales)


def test_every_byte_under_every_scale() -> None:
    blocks = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 256, 16, 16)
    check(blocks, torch.arange(256, dtype=torch.uint8).view(1, 256, 1).expand(1, 256, 16))


def test_known_values() -> None:
    """Lower four bits first; the sign is the highest of them; the second group is scaled by 2 ** 3."""
    blocks = torch.zeros(1, 2, 16, dtype=torch.uint8)
    blocks[0, 0, 0], blocks[0, 1, 15] = 0x72, 0x9F
    row = unpack(blocks, torch.tensor([[127, 130]], dtype=torch.uint8))[0]
    assert row.shape == (64,)
    assert row[:2].tolist() == [1.0, 6.0]
    assert row[-2:].tolist() == [-48.0, -4.0]
    assert row[2:-2].count_nonzero() == 0

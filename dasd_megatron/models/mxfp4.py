"""MXFP4 weights, as gpt-oss is published, to bfloat16.

A file holds `NAME_blocks`, uint8 [experts, rows, groups, 16]: the FP4 values (E2M1) of 32 neighbouring columns, two a byte,
the lower four bits first; and `NAME_scales`, uint8 [experts, rows, groups]: the exponent of the power of two that
multiplies each group, plus 127. Rows are outputs and columns inputs: `unpack` of an expert's `gate_up_proj` gives
[gate and up, hidden] and of its `down_proj` [hidden, inner], where transformers' tensors of these names are the transposes.
"""

from __future__ import annotations

import torch

BLOCKS, SCALES = "_blocks", "_scales"
_BIAS = 127
_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_VALUES = torch.tensor([*_MAGNITUDES, *(-magnitude for magnitude in _MAGNITUDES)], dtype=torch.bfloat16)
# Both values of each byte.
_PAIRS = torch.stack([_VALUES.repeat(16), _VALUES.repeat_interleave(16)], 1)


def unpack(blocks: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """The matrix [..., rows, columns] in bfloat16, of uint8 blocks [..., rows, groups, 16] and scales [..., rows, groups].

    At its peak it takes four times the result's memory: call it with one expert at a time.
    """
    values = _PAIRS[blocks.int()].flatten(-2)
    torch.ldexp(values, (scales.int() - _BIAS)[..., None], out=values)
    return values.flatten(-2)


def unpacked_size(blocks: tuple[int, ...], scales: tuple[int, ...]) -> tuple[int, ...] | None:
    """Size of transformers' tensor [experts, columns, rows] of packed ones of these sizes; None where they don't fit."""
    if len(blocks) != 4 or blocks[3] != 16 or blocks[:3] != scales:
        return None
    experts, rows, groups, _ = blocks
    return experts, 32 * groups, rows

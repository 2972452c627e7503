"""FP8 with a scale for every 128 elements of a row (1D), or for every square of 128 x 128 (2D)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

BLOCK = 128


def empty_blockwise(quantizer: Any, shape: Sequence[int], dtype: torch.dtype) -> Any:
    """Room as Transformer Engine's Python describes it: rows, their transpose, and the scales of each."""
    kind = quantizer.storage_metadata(dtype)
    cuda = torch.device("cuda")
    names = ("rowwise_data", "rowwise_scale_inv", "columnwise_data", "columnwise_scale_inv")
    specs = quantizer.inner_tensor_specs(tuple(shape))
    parts = {
        name: torch.empty(specs[f"_{name}"][0], dtype=specs[f"_{name}"][1], device=cuda)
        if f"_{name}" in specs
        else None
        for name in names
    }
    settings = dict(kind["nontensor_kwargs"])
    if not quantizer.internal:
        settings |= {"shape": tuple(shape), "dtype": settings.pop("fake_dtype"), "requires_grad": False, "device": cuda}
    return kind["cls"](**parts, **settings)


def store_blockwise(values: torch.Tensor, quantizer: Any, out: Any, number: torch.dtype) -> None:
    """Rows and columns are scaled apart in 1D; in 2D both have the squares' scales."""
    flat = values.float().reshape(math.prod(values.shape[:-1]), values.shape[-1])
    square = quantizer.block_scaling_dim == 2
    if out._rowwise_data is not None:
        stored, inverse = _scaled(flat, (BLOCK if square else 1, BLOCK), quantizer, number)
        out._rowwise_data.copy_(stored.reshape(out._rowwise_data.shape))
        _put(out._rowwise_scale_inv, inverse if square else inverse.t())
    if out._columnwise_data is not None:
        stored, inverse = _scaled(flat, (BLOCK, BLOCK if square else 1), quantizer, number)
        out._columnwise_data.copy_(stored.t().reshape(out._columnwise_data.shape))
        _put(out._columnwise_scale_inv, inverse.t() if square else inverse)


def _scaled(
    values: torch.Tensor, block: tuple[int, int], quantizer: Any, number: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Bytes, and what each block's elements are multiplied by to have them back, [blocks, blocks]."""
    rows, columns = values.shape
    padding = (0, -columns % block[1], 0, -rows % block[0])
    blocks = torch.nn.functional.pad(values.abs(), padding).unflatten(1, (-1, block[1])).unflatten(0, (-1, block[0]))
    amax, highest = blocks.amax((1, 3)), torch.finfo(number).max
    scale = highest / amax.clamp(min=quantizer.amax_epsilon)
    scale = torch.where((amax > 0) & torch.isfinite(scale), scale, torch.ones_like(scale))
    if quantizer.force_pow_2_scales:
        scale = torch.exp2(torch.floor(torch.log2(scale)))
    each = scale.repeat_interleave(block[0], 0)[:rows].repeat_interleave(block[1], 1)[:, :columns]
    return (values * each).clamp(-highest, highest).to(number).view(torch.uint8), 1 / scale


def _put(memory: torch.Tensor, scales: torch.Tensor) -> None:
    """Scales have a row length that divides by 4."""
    memory.fill_(torch.nan)
    memory[: scales.shape[0], : scales.shape[1]] = scales


def float32_of(tensor: Any) -> torch.Tensor:
    """By Transformer Engine's own Python."""
    from transformer_engine.pytorch.tensor.storage.float8_blockwise_tensor_storage import _FromFloat8BlockwiseFunc

    values: torch.Tensor = _FromFloat8BlockwiseFunc.forward(None, tensor, torch.float32)
    return values

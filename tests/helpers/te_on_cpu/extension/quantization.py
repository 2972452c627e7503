"""FP8: tensorwise scaling, current and delayed; blockwise scaling is in blockwise.py."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tests.helpers.te_on_cpu.device import kernel, tracked
from tests.helpers.te_on_cpu.extension.blockwise import empty_blockwise, float32_of, store_blockwise
from tests.helpers.te_on_cpu.extension.enums import DType, torch_type

HIGHEST = {DType.kFloat8E4M3: 448.0, DType.kFloat8E5M2: 57344.0}
_MAX = torch.finfo(torch.float32).max


class FP8TensorMeta:
    """Scales and amax histories of delayed scaling."""

    def __init__(self) -> None:
        self.scale = self.scale_inv = self.amax_history = None


def high_precision(tensor: Any) -> torch.Tensor:
    """A tensor as float32, however it is stored."""
    if hasattr(tensor, "_scale_inv") and hasattr(tensor, "_fp8_dtype"):
        rowwise = getattr(tensor, "_data", None)
        if rowwise is not None:
            stored = rowwise.view(torch_type(tensor._fp8_dtype)).float()
        else:  # the column-wise copy, whose first dimension is the last
            stored = tensor._transpose.view(torch_type(tensor._fp8_dtype)).float().movedim(0, -1)
        return stored * tensor._scale_inv.float()
    return float32_of(tensor) if hasattr(tensor, "_is_2D_scaled") else tensor.float()


@kernel
def dequantize(tensor: Any, otype: int) -> torch.Tensor:
    """In the type asked for."""
    return high_precision(tensor).to(torch_type(otype))


def quantize_into(values: torch.Tensor, quantizer: Any, out: Any = None, noop: torch.Tensor | None = None) -> Any:
    """`values` as the quantizer makes them; as they are where there is none."""
    if quantizer is None:
        return values if out is None else out.copy_(values)
    if out is None:
        with tracked():
            out = quantizer.make_empty(values.shape, dtype=values.dtype, device=torch.device("cuda"))
    if noop is None or not bool(noop.any()):
        _WAYS[type(quantizer).__name__](values.detach(), quantizer, out)
    return out


@kernel
def quantize(tensor: torch.Tensor, quantizer: Any, output: Any = None, noop: torch.Tensor | None = None) -> Any:
    """Of one tensor."""
    return quantize_into(tensor, quantizer, output, noop)


@kernel
def split_quantize(tensor: torch.Tensor, splits: Sequence[int], quantizers: Sequence[Any], **_: Any) -> list[Any]:
    """Of each expert's tokens."""
    parts = torch.split(tensor, [int(size) for size in splits])
    return [quantize_into(part, quantizer) for part, quantizer in zip(parts, quantizers, strict=True)]


@kernel
def bgrad_quantize(tensor: torch.Tensor, quantizer: Any) -> tuple[torch.Tensor, Any]:
    """A bias's gradient, and the output's gradient quantized."""
    return tensor.flatten(0, -2).float().sum(0).to(tensor.dtype), quantize_into(tensor, quantizer)


def scale_of(amax: torch.Tensor, highest: float, epsilon: float = 0.0, power_of_two: bool = False) -> torch.Tensor:
    """What values are multiplied by, so that the largest becomes the type's largest; 1 where there is nothing to scale."""
    scale = highest / amax.float().clamp(min=epsilon)
    scale = torch.where((amax > 0) & torch.isfinite(amax), scale.clamp(max=_MAX), torch.ones_like(scale))
    return torch.exp2(torch.floor(torch.log2(scale))) if power_of_two else scale


def _tensorwise(values: torch.Tensor, quantizer: Any, out: Any, scale: torch.Tensor) -> None:
    number = DType(int(quantizer.dtype))
    limit = HIGHEST[number]
    stored = (values.float() * scale).clamp(-limit, limit).to(torch_type(number)).view(torch.uint8)
    out._scale_inv.copy_((1 / scale).reshape(out._scale_inv.shape))
    if out._data is not None:
        out._data.copy_(stored.reshape(out._data.shape))
    if out._transpose is not None:
        out._transpose.copy_(stored.movedim(-1, 0).reshape(out._transpose.shape))
        out._transpose_invalid = False


def _amax(values: torch.Tensor) -> torch.Tensor:
    return values.float().abs().max() if values.numel() else torch.zeros(())


def _delayed(values: torch.Tensor, quantizer: Any, out: Any) -> None:
    """With the scale that steps before gave; the largest value is noted for those after."""
    quantizer.amax.copy_(torch.maximum(quantizer.amax, _amax(values).reshape(quantizer.amax.shape)))
    _tensorwise(values, quantizer, out, quantizer.scale.float().reshape(()))


def _current(values: torch.Tensor, quantizer: Any, out: Any) -> None:
    amax = _amax(values)
    if getattr(quantizer, "with_amax_reduction", False):
        torch.distributed.all_reduce(amax, torch.distributed.ReduceOp.MAX, quantizer.amax_reduction_group)
    epsilon, power = getattr(quantizer, "amax_epsilon", 0.0), getattr(quantizer, "force_pow_2_scales", False)
    _tensorwise(values, quantizer, out, scale_of(amax, HIGHEST[DType(int(quantizer.dtype))], epsilon, power))


def _blockwise(values: torch.Tensor, quantizer: Any, out: Any) -> None:
    store_blockwise(values, quantizer, out, torch_type(quantizer.dtype))


_WAYS = {
    "Float8Quantizer": _delayed,
    "Float8CurrentScalingQuantizer": _current,
    "Float8BlockQuantizer": _blockwise,
}


def create_empty_quantized_tensor(
    quantizer: Any, shape: Sequence[int], dtype: torch.dtype, device: Any, pin_memory: bool
) -> Any:
    """Room for the rows, and for their transpose where products with it are to come: Hopper multiplies rows alone."""
    if type(quantizer).__name__ == "Float8BlockQuantizer":
        return empty_blockwise(quantizer, shape, dtype)
    from transformer_engine.pytorch.tensor.float8_tensor import Float8Tensor, Float8TensorStorage

    cuda = torch.device("cuda")
    common = {
        "data": torch.empty(shape, dtype=torch.uint8, device=cuda) if quantizer.rowwise_usage else None,
        "data_transpose": (
            torch.empty((shape[-1], *shape[:-1]), dtype=torch.uint8, device=cuda)
            if quantizer.columnwise_usage
            else None
        ),
        "fp8_scale_inv": torch.ones(1, device=cuda),
        "fp8_dtype": quantizer.dtype,
        "quantizer": quantizer,
    }
    if quantizer.internal:
        return Float8TensorStorage(**common, fake_dtype=dtype)
    return Float8Tensor(shape=tuple(shape), dtype=dtype, requires_grad=False, device=cuda, **common)


@kernel
def fp8_transpose(data: torch.Tensor, dtype: int, out: torch.Tensor | None = None) -> torch.Tensor:
    """Of stored bytes: the last dimension first."""
    turned = data.movedim(-1, 0).contiguous()
    return turned if out is None else out.copy_(turned.reshape(out.shape))


@kernel
def compute_amax(tensor: torch.Tensor, amax: torch.Tensor) -> None:
    """The largest magnitude."""
    amax.copy_(_amax(tensor).reshape(amax.shape))


@kernel
def fused_amax_and_scale_update_after_reduction(
    reduced: torch.Tensor,
    histories: Sequence[torch.Tensor],
    scales: Sequence[torch.Tensor],
    algorithm: str,
    dtype: int,
    margin: float,
) -> None:
    """Delayed scaling's step: the newest amax enters each history ([steps, tensors], newest first), and scales follow."""
    highest, taken = HIGHEST[DType(int(dtype))], 0
    for history, scale in zip(histories, scales, strict=True):
        if reduced is not None and reduced.numel():
            history[0] = reduced[taken : taken + history.shape[1]]
        taken += history.shape[1]
        amax = history.max(0).values if algorithm == "max" else history[0].clone()
        history.copy_(torch.roll(history, -1, 0))
        history[0].zero_()
        wanted = (highest / amax / 2.0**margin).clamp(max=_MAX)
        scale.copy_(torch.where((amax > 0) & torch.isfinite(amax), wanted, scale))

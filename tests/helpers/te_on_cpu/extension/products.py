"""Matrix products. Their operands are as Python has them: rows of B are rows of the result (the kernels count columns first)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from tests.helpers.te_on_cpu.device import kernel
from tests.helpers.te_on_cpu.extension.enums import torch_type
from tests.helpers.te_on_cpu.extension.quantization import high_precision, quantize_into

# What dimensions of FP8 operands must divide by, for cuBLASLt.
FP8_MULTIPLE = 16


def product(a: Any, transa: bool, b: Any, transb: bool) -> torch.Tensor:
    """[rows of B, rows of A] where A is transposed and B isn't, as in a forward pass; float32."""
    _check_fp8(a, transa, b, transb)
    left, right = (high_precision(operand).flatten(0, -2) for operand in (b, a))
    return (left.t() if transb else left) @ (right.t() if transa else right)


def _check_fp8(a: Any, transa: bool, b: Any, transb: bool) -> None:
    if all(getattr(operand, "_is_2D_scaled", False) for operand in (a, b)):
        raise RuntimeError("cuBLASLt: no algorithm for two FP8 operands with scales of squares")
    for operand in (a, b):
        if not hasattr(operand, "_fp8_dtype"):
            continue
        rows, columns = math.prod(operand.shape[:-1]), operand.shape[-1]
        inner_rows = transb or not transa
        if columns % FP8_MULTIPLE or (inner_rows and rows % FP8_MULTIPLE):
            raise RuntimeError(
                f"cuBLASLt: no algorithm for an FP8 operand of {tuple(operand.shape)}: not by {FP8_MULTIPLE}"
            )


def store(values: torch.Tensor, out: torch.Tensor, accumulate: bool, beta: float = 1.0) -> None:
    """Into memory that is there, rounded once."""
    view = out.view(values.shape)
    view.copy_(view.float() * beta + values if accumulate else values)


def column_sums(gradient: Any, dtype: torch.dtype) -> torch.Tensor:
    """A bias's gradient."""
    return high_precision(gradient).flatten(0, -2).sum(0).to(dtype)


@kernel
def generic_gemm(
    A: Any,
    transa: bool,
    B: Any,
    transb: bool,
    out: torch.Tensor | None,
    quantizer: Any,
    out_dtype: int | None,
    bias: torch.Tensor | None,
    bias_dtype: int,
    gelu: bool,
    gelu_in: Any,
    grad: bool,
    workspace: Any,
    workspace_size: int,
    accumulate: bool,
    use_split_accumulator: bool,
    comm_overlap: Any = None,
    comm_type: Any = None,
    extra_output: Any = None,
    bulk_overlap: bool = False,
    alpha: float = 1.0,
    beta: float | None = None,
) -> tuple[Any, torch.Tensor | None, None, Any]:
    """One product, with a bias or, going back, the bias's gradient."""
    if gelu or comm_overlap is not None:
        raise NotImplementedError("generic_gemm with gelu or with communication inside")
    result, bias_gradient = product(A, transa, B, transb) * alpha, None
    if bias is not None and grad:
        bias_gradient = column_sums(B, torch_type(bias_dtype))
    elif bias is not None:
        result = result + bias.float()
    if out is not None:
        store(result, out, accumulate, 1.0 if beta in (None, 0.0) else beta)
        return out, bias_gradient, None, extra_output
    dtype = torch_type(out_dtype) if out_dtype is not None else A.dtype
    shape = result.shape if transb else (*B.shape[:-1], result.shape[-1])
    return quantize_into(result.to(dtype).view(shape), quantizer), bias_gradient, None, extra_output


@kernel
def te_general_grouped_gemm(
    A: Sequence[Any],
    transa: bool,
    B: Sequence[Any],
    transb: bool,
    D: Sequence[torch.Tensor],
    D_type: int,
    m_splits: Sequence[int],
    bias: Sequence[torch.Tensor],
    bias_type: int,
    single_output: bool,
    pre_gelu_out: Any,
    grad: bool,
    workspace: Any,
    workspace_size: int,
    accumulate: bool,
    use_split_accumulator: bool,
    sm_count: int,
) -> Sequence[torch.Tensor]:
    """One product an expert. An expert without tokens gets zeros, or keeps what is accumulated."""
    outputs = torch.split(D[0], [int(size) for size in m_splits]) if single_output else D
    for number, (a, b, out) in enumerate(zip(A, B, outputs, strict=True)):
        has_bias = bool(bias) and bias[number].numel() > 0
        if not math.prod(b.shape[:-1]):
            if not (single_output or accumulate):
                out.zero_()
            if grad and has_bias:
                bias[number].zero_()
            continue
        result = product(a, transa, b, transb)
        if has_bias and grad:
            bias[number].copy_(column_sums(b, torch.float32))
        elif has_bias:
            result = result + bias[number].float()
        store(result, out, accumulate)
    return bias

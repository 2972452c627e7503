"""RMSNorm, and activations with a gate."""

from __future__ import annotations

from typing import Any

import torch

from tests.helpers.te_on_cpu.device import kernel
from tests.helpers.te_on_cpu.extension.enums import torch_type
from tests.helpers.te_on_cpu.extension.quantization import quantize_into


@kernel
def rmsnorm_fwd(
    x: torch.Tensor,
    weight: torch.Tensor,
    eps: float,
    out: Any,
    quantizer: Any,
    otype: int,
    sm_margin: int,
    zero_centered: bool,
) -> tuple[Any, None, torch.Tensor]:
    """Normalised rows times the weight, and what each row was divided by, inverted."""
    inverse = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + eps)
    scaled = x.float() * inverse * _gain(weight, zero_centered)
    return quantize_into(scaled.to(torch_type(otype)), quantizer, out), None, inverse.flatten()


@kernel
def rmsnorm_bwd(
    dz: torch.Tensor, x: torch.Tensor, rsigma: torch.Tensor, weight: torch.Tensor, sm_margin: int, zero_centered: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of input and weight."""
    if dz.shape != x.shape:
        raise RuntimeError(f"rmsnorm_bwd: a gradient of {tuple(dz.shape)} for an input of {tuple(x.shape)}")
    inverse, gradient = rsigma.view(*x.shape[:-1], 1), dz.float()
    unit = x.float() * inverse
    through = gradient * _gain(weight, zero_centered)
    dx = inverse * (through - unit * (through * unit).mean(-1, keepdim=True))
    return dx.to(x.dtype), (gradient * unit).flatten(0, -2).sum(0).to(weight.dtype)


def _gain(weight: torch.Tensor, zero_centered: bool) -> torch.Tensor:
    return weight.float() + 1 if zero_centered else weight.float()


@kernel
def swiglu(x: torch.Tensor, quantizer: Any, *_: Any) -> Any:
    """silu(first half) times the second half."""
    gate, value = x.float().chunk(2, -1)
    return quantize_into((gate * torch.sigmoid(gate) * value).to(x.dtype), quantizer)


@kernel
def dswiglu(grad: torch.Tensor, x: torch.Tensor, quantizer: Any, *_: Any) -> Any:
    """Its gradient."""
    (gate, value), upstream = x.float().chunk(2, -1), grad.float()
    sigmoid = torch.sigmoid(gate)
    d_gate = upstream * value * sigmoid * (1 + gate * (1 - sigmoid))
    return quantize_into(torch.cat([d_gate, upstream * gate * sigmoid], -1).to(x.dtype), quantizer)

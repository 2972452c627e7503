"""What is done to many tensors at once: scaling, norms, Adam."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tests.helpers.te_on_cpu.device import kernel, tracked

Lists = Sequence[Sequence[torch.Tensor]]


@kernel
def multi_tensor_scale(chunk_size: int, noop_flag: torch.Tensor, tensor_lists: Lists, scale: float) -> None:
    """Scaled copies; the flag rises where a value isn't finite."""
    for source, target in zip(*tensor_lists, strict=True):
        if not bool(torch.isfinite(source).all()):
            noop_flag.fill_(1)
        target.copy_(source.float() * scale)


@kernel
def multi_tensor_scale_tensor(
    chunk_size: int, noop_flag: torch.Tensor, tensor_lists: Lists, scale: torch.Tensor
) -> None:
    """The same with the factor in memory of the device, so that no host has to wait for it."""
    with tracked():
        multi_tensor_scale(chunk_size, noop_flag, tensor_lists, scale.item())


@kernel
def multi_tensor_l2norm(
    chunk_size: int, noop_flag: torch.Tensor, tensor_lists: Lists, per_tensor: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The norm of all, and of each if asked for."""
    each = torch.stack([tensor.float().norm() for tensor in tensor_lists[0]])
    return each.norm().reshape(1), each if per_tensor else torch.empty(0)


@kernel
def multi_tensor_unscale_l2norm(
    chunk_size: int, noop_flag: torch.Tensor, tensor_lists: Lists, inv_scale: torch.Tensor, per_tensor: bool = False
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same of tensors that are divided by a loss scale."""
    each = torch.stack([tensor.float().norm() for tensor in tensor_lists[0]]) * inv_scale
    return each.norm().reshape(1), each if per_tensor else torch.empty(0)


def _updated(
    tensors: Sequence[torch.Tensor],
    parameter: torch.Tensor,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    step: int,
    decoupled: bool,
    bias_correction: bool,
    decay: float,
) -> torch.Tensor:
    """The parameter after a step, float32; moments are updated in place."""
    gradient, _, first, second = tensors[:4]
    g = gradient.float() if decoupled else gradient.float() + decay * parameter
    moments = []
    for memory, beta, value in ((first, betas[0], g), (second, betas[1], g * g)):
        moment = memory.float() * beta + value * (1 - beta)
        memory.copy_(moment)
        moments.append(moment / (1 - beta**step) if bias_correction else moment)
    change = moments[0] / (moments[1].sqrt() + eps)
    return parameter - lr * (change + decay * parameter if decoupled else change)


@kernel
def multi_tensor_adam(
    chunk_size: int,
    noop_flag: torch.Tensor,
    tensor_lists: Lists,
    lr: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    step: int,
    mode: int,
    bias_correction: int,
    weight_decay: float,
) -> None:
    """Lists: gradients, parameters, first and second moments, maybe master weights. `mode` 1 decays weights apart (AdamW)."""
    for tensors in zip(*tensor_lists, strict=True):
        master = tensors[4] if len(tensors) > 4 else tensors[1]
        new = _updated(
            tensors, master.float(), lr, (beta1, beta2), epsilon, step, mode == 1, bool(bias_correction), weight_decay
        )
        for kept in {id(master): master, id(tensors[1]): tensors[1]}.values():
            kept.copy_(new)


@kernel
def multi_tensor_adam_param_remainder(
    chunk_size: int,
    noop_flag: torch.Tensor,
    tensor_lists: Lists,
    lr: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    step: int,
    mode: int,
    bias_correction: int,
    weight_decay: float,
) -> None:
    """With master weights kept as the bf16 parameter, rounded to nearest, and the 16 bits by which it is off."""
    for tensors in zip(*tensor_lists, strict=True):
        parameter, remainder = tensors[1], tensors[4]
        master = join(parameter, remainder)
        new = _updated(
            tensors, master, lr, (beta1, beta2), epsilon, step, mode == 1, bool(bias_correction), weight_decay
        )
        split(new, parameter, remainder)


def join(parameter: torch.Tensor, remainder: torch.Tensor) -> torch.Tensor:
    """float32 of a bf16 number and its signed remainder."""
    low = remainder.int()
    high = parameter.view(torch.int16).int() - (low < 0).int()
    return ((high << 16) | (low & 0xFFFF)).view(torch.float32)


def split(master: torch.Tensor, parameter: torch.Tensor, remainder: torch.Tensor) -> None:
    """Writes the two."""
    bits = master.contiguous().view(torch.int32)
    low = bits & 0xFFFF
    rounded_up = low >= 0x8000
    remainder.copy_(torch.where(rounded_up, low - 0x10000, low).to(torch.int16))
    parameter.copy_(((bits >> 16) + rounded_up.int()).to(torch.int16).view(torch.bfloat16))

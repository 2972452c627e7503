"""Rotary embedding, fused."""

from __future__ import annotations

import itertools

import torch

from tests.helpers.te_on_cpu.device import kernel
from tests.helpers.te_on_cpu.extension.enums import NVTE_QKV_Format


def _positions(tokens: int, cu_seqlens: torch.Tensor, ranks: int, rank: int) -> torch.Tensor:
    """Of each token of a pack within its document; -1 of those that belong to none.

    `cu_seqlens` counts whole documents; a context-parallel rank has two of the 2 x ranks parts of each.
    """
    found = torch.full((tokens,), -1, dtype=torch.int64)
    bounds = (cu_seqlens // ranks).tolist()
    for start, end in itertools.pairwise(bounds):
        own = torch.arange(end - start)
        if ranks > 1:
            part = (end - start) // 2
            first, second = own < part, own >= part
            own = (
                own + torch.where(first, rank * part, 0) + torch.where(second, (2 * ranks - rank - 1) * part - part, 0)
            )
        found[start:end] = own
    return found


def _angles(t: torch.Tensor, freqs: torch.Tensor, fmt: int, cu: torch.Tensor, ranks: int, rank: int) -> torch.Tensor:
    """For each token, so that it broadcasts over heads; NaN for tokens of no document."""
    table = freqs[:, 0, 0].float()
    if fmt == NVTE_QKV_Format.NVTE_THD:
        positions = _positions(t.shape[0], cu, ranks, rank)
        if int(positions.max()) >= len(table):
            raise RuntimeError(f"fused_rope: position {int(positions.max())} of {len(table)} frequencies")
        return torch.where(positions[:, None] < 0, torch.nan, table[positions.clamp(min=0)])[:, None]
    return table[: t.shape[0], None, None] if fmt == NVTE_QKV_Format.NVTE_SBHD else table[None, : t.shape[1], None]


def _turned(t: torch.Tensor, angles: torch.Tensor, interleaved: bool, back: bool) -> torch.Tensor:
    width = angles.shape[-1]
    x, sine = t[..., :width].float(), angles.sin()

    def quarter(y: torch.Tensor) -> torch.Tensor:
        if interleaved:
            return torch.stack([-y[..., 1::2], y[..., ::2]], -1).flatten(-2)
        one, other = y.chunk(2, -1)
        return torch.cat([-other, one], -1)

    turned = x * angles.cos() + (-quarter(x * sine) if back else quarter(x) * sine)
    return torch.cat([turned.to(t.dtype), t[..., width:]], -1).contiguous()


@kernel
def fused_rope_forward(
    t: torch.Tensor,
    freqs: torch.Tensor,
    start_positions: torch.Tensor | None,
    fmt: int,
    interleaved: bool,
    cu_seqlens: torch.Tensor | None,
    cp_size: int,
    cp_rank: int,
) -> torch.Tensor:
    """Queries or keys, turned by their positions."""
    if start_positions is not None:
        raise NotImplementedError("fused_rope with start positions")
    return _turned(t, _angles(t, freqs, int(fmt), cu_seqlens, cp_size, cp_rank), interleaved, back=False)


@kernel
def fused_rope_backward(
    grad: torch.Tensor,
    freqs: torch.Tensor,
    start_positions: torch.Tensor | None,
    fmt: int,
    interleaved: bool,
    cu_seqlens: torch.Tensor | None,
    cp_size: int,
    cp_rank: int,
) -> torch.Tensor:
    """Their gradients, turned back."""
    return _turned(grad, _angles(grad, freqs, int(fmt), cu_seqlens, cp_size, cp_rank), interleaved, back=True)

"""cuDNN's fused attention: packs, groups of heads, windows, sinks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from tests.helpers.te_on_cpu.device import kernel
from tests.helpers.te_on_cpu.extension.enums import (
    NVTE_Fused_Attn_Backend,
    NVTE_Mask_Type,
    NVTE_QKV_Layout,
    NVTE_Softmax_Type,
)


@dataclass(frozen=True)
class AttentionCall:
    """What a kernel was asked for, for tests to look at."""

    layout: str
    mask: str
    window: tuple[int, int]
    softmax: str
    scale: float
    max_seqlen: tuple[int, int]
    sequences: int
    dtype: torch.dtype


calls: list[AttentionCall] = []


def get_fused_attn_backend(params: Any) -> tuple[NVTE_Fused_Attn_Backend, str]:
    """Whether there is a kernel for such an attention, and why not."""
    if params.head_dim_qk % 8 or params.head_dim_v % 8 or params.head_dim_qk > 256:
        return NVTE_Fused_Attn_Backend.NVTE_No_Backend, "head_dim must divide by 8 and be at most 256"
    return NVTE_Fused_Attn_Backend.NVTE_F16_arbitrary_seqlen, ""


@dataclass(frozen=True)
class _Sequences:
    """Where each sequence's tokens are in a tensor."""

    fmt: str
    lengths: list[int]
    starts: list[int]

    @classmethod
    def of(cls, fmt: str, cu: torch.Tensor, padded: torch.Tensor | None) -> _Sequences:
        for bounds in (cu, padded):
            if bounds is not None and bounds.dtype is not torch.int32:
                raise RuntimeError(f"fused_attn: cu_seqlens of {bounds.dtype}, not int32")
        return cls(fmt, (cu[1:] - cu[:-1]).tolist(), (cu if padded is None else padded)[:-1].tolist())

    def __iter__(self) -> Iterator[Any]:
        for number, (start, length) in enumerate(zip(self.starts, self.lengths, strict=True)):
            if self.fmt == "thd":
                yield (slice(start, start + length),)
            else:
                yield (number, slice(0, length)) if self.fmt == "bshd" else (slice(0, length), number)


def _formats(layout: int) -> tuple[str, str]:
    """Of queries, and of keys and values."""
    name = NVTE_QKV_Layout(int(layout)).name.removeprefix("NVTE_").replace("2", "").replace("3", "").lower()
    parts = name.split("_")
    return parts[0], parts[-1]


@dataclass(frozen=True)
class _Scores:
    """How scores are made of queries [q, heads, d] and keys [k, groups, d]: float32 [heads, q, k], -inf where not allowed."""

    scale: float
    mask: int
    window: tuple[int, int]
    bottom_right: bool

    def of(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        scores = torch.einsum("qhd,khd->hqk", queries.float(), spread(keys, queries.shape[1])) * self.scale
        return scores.masked_fill(~self._allowed(queries.shape[0], keys.shape[0]), -torch.inf)

    def _allowed(self, queries: int, keys: int) -> torch.Tensor:
        name = NVTE_Mask_Type(int(self.mask)).name
        late = keys - queries if self.bottom_right or "BOTTOM_RIGHT" in name else 0
        ahead = torch.arange(keys)[None] - torch.arange(queries)[:, None] - late
        left, right = self.window
        allowed = ahead <= 0 if "CAUSAL" in name else torch.ones_like(ahead, dtype=torch.bool)
        if left >= 0:
            allowed = allowed & (ahead >= -left)
        return allowed & (ahead <= right) if right >= 0 else allowed


def spread(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """Keys or values, one for each query head, float32."""
    return tensor.float().repeat_interleave(heads // tensor.shape[1], 1)


def _gathered(tensor: torch.Tensor, groups: int) -> torch.Tensor:
    return tensor.unflatten(1, (groups, -1)).sum(2)


def _log_sum(scores: torch.Tensor, softmax: int, offset: torch.Tensor | None) -> torch.Tensor:
    """[heads, q]: the logarithm of the softmax's denominator, a sink's part included."""
    total = torch.logsumexp(scores, -1)
    if softmax == NVTE_Softmax_Type.NVTE_OFF_BY_ONE_SOFTMAX:
        return torch.logaddexp(total, torch.zeros_like(total))
    if softmax == NVTE_Softmax_Type.NVTE_LEARNABLE_SOFTMAX:
        if offset is None or offset.dtype is not torch.float32 or offset.shape != (1, len(total), 1, 1):
            raise RuntimeError("fused_attn: softmax_offset must be float32 [1, heads, 1, 1]")
        return torch.logaddexp(total, offset.view(-1, 1))
    return total


def _probabilities(scores: torch.Tensor, log_sum: torch.Tensor) -> torch.Tensor:
    return torch.exp(scores - torch.where(torch.isinf(log_sum), 0.0, log_sum)[..., None])


@kernel
def fused_attn_fwd(
    max_seqlen_q, max_seqlen_kv, is_training, attn_scale, dropout, fast_zero_fill, layout, o_format, scale_inv_format, bias_type,
    mask_type, softmax_type, window, bottom_right, cu_q, cu_kv, q, k, v, fake_dtype, cu_q_padded, cu_kv_padded, page_k, page_v,
    s_quantizer, o_quantizer, bias, softmax_offset, rng_gen, rng_elts, return_max_logit, cuda_graph,
) -> list[torch.Tensor]:  # fmt: skip
    """[output, log of the denominators, state of the random generator, maybe the sinks], in inference, too (TE's csrc)."""
    if dropout or bias is not None or page_k is not None or s_quantizer is not None or return_max_logit:
        raise NotImplementedError("fused_attn_fwd with dropout, bias, pages, FP8, or the largest logit")
    q_format, kv_format = _formats(layout)
    queries, keys = _Sequences.of(q_format, cu_q, cu_q_padded), _Sequences.of(kv_format, cu_kv, cu_kv_padded)
    if max(queries.lengths) > max_seqlen_q or max(keys.lengths) > max_seqlen_kv:
        raise RuntimeError(f"fused_attn_fwd: a sequence is longer than max_seqlen {max_seqlen_q, max_seqlen_kv}")
    _note(
        layout,
        mask_type,
        window,
        softmax_type,
        attn_scale,
        (max_seqlen_q, max_seqlen_kv),
        len(queries.lengths),
        q.dtype,
    )
    heads, how = q.shape[-2], _Scores(attn_scale, mask_type, tuple(window), bottom_right)
    packed = q_format == "thd"
    out = torch.full((*q.shape[:-1], v.shape[-1]), 0.0 if fast_zero_fill or not packed else torch.nan, dtype=q.dtype)
    stats = torch.zeros((q.shape[0], heads, 1) if packed else (len(queries.lengths), heads, max_seqlen_q, 1))
    for number, (at, other) in enumerate(zip(queries, keys, strict=True)):
        if not q[at].shape[0]:
            continue
        scores = how.of(q[at], k[other])
        log_sum = _log_sum(scores, int(softmax_type), softmax_offset)
        out[at] = torch.einsum("hqk,khd->qhd", _probabilities(scores, log_sum), spread(v[other], heads)).to(out.dtype)
        if packed:
            stats[at[0], :, 0] = log_sum.t()
        else:
            stats[number, :, : log_sum.shape[1], 0] = log_sum
    state = torch.zeros(2, dtype=torch.int64)
    return [out, stats, state, *([softmax_offset] if softmax_type != NVTE_Softmax_Type.NVTE_VANILLA_SOFTMAX else [])]


def _note(layout, mask, window, softmax, scale, longest, count, dtype) -> None:  # type: ignore[no-untyped-def]
    names = NVTE_QKV_Layout(int(layout)).name, NVTE_Mask_Type(int(mask)).name, NVTE_Softmax_Type(int(softmax)).name
    calls.append(AttentionCall(names[0], names[1], tuple(window), names[2], scale, longest, count, dtype))


@kernel
def fused_attn_bwd(
    max_seqlen_q, max_seqlen_kv, attn_scale, dropout, fast_zero_fill, layout, o_format, do_format, dqkv_layout, scale_inv_format,
    do_scale_inv_format, bias_type, mask_type, softmax_type, window, bottom_right, deterministic, cu_q, cu_kv, q, k, v, o, d_o,
    fake_dtype, aux, cu_q_padded, cu_kv_padded, s_quantizer, dp_quantizer, dqkv_quantizer, cuda_graph,
) -> list[torch.Tensor | None]:  # fmt: skip
    """[dq, dk, dv, none, the sinks' gradient]; probabilities follow from the denominators that are given, as cuDNN's do."""
    q_format, kv_format = _formats(layout)
    stats, heads, how = aux[0], q.shape[-2], _Scores(attn_scale, mask_type, tuple(window), bottom_right)
    dq, dk, dv = _gradient_memory(q, k, v, dqkv_layout)
    d_sinks = torch.zeros(1, heads, 1, 1)
    pairs = zip(_Sequences.of(q_format, cu_q, cu_q_padded), _Sequences.of(kv_format, cu_kv, cu_kv_padded), strict=True)
    for number, (at, other) in enumerate(pairs):
        queries, keys, values, gradient = q[at], k[other], v[other], d_o[at].float()
        if not queries.shape[0]:
            continue
        log_sum = stats[at[0], :, 0].t() if stats.dim() == 3 else stats[number, :, : queries.shape[0], 0]
        probabilities = _probabilities(how.of(queries, keys), log_sum)
        along = (o[at].float() * gradient).sum(-1).t()  # [heads, q]
        d_probabilities = torch.einsum("qhd,khd->hqk", gradient, spread(values, heads))
        d_scores = probabilities * (d_probabilities - along[..., None]) * attn_scale
        groups = keys.shape[1]
        dq[at] = torch.einsum("hqk,khd->qhd", d_scores, spread(keys, heads)).to(dq.dtype)
        dk[other] = _gathered(torch.einsum("hqk,qhd->khd", d_scores, queries.float()), groups).to(dk.dtype)
        dv[other] = _gathered(torch.einsum("hqk,qhd->khd", probabilities, gradient), groups).to(dv.dtype)
        if softmax_type == NVTE_Softmax_Type.NVTE_LEARNABLE_SOFTMAX:
            sink = torch.exp(aux[2].float().view(-1, 1) - log_sum)
            d_sinks[0, :, 0, 0] -= (sink * along).sum(-1)
    return [dq, dk, dv, None, None if softmax_type == NVTE_Softmax_Type.NVTE_VANILLA_SOFTMAX else d_sinks]


def _gradient_memory(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layout: int) -> list[torch.Tensor]:
    """Zeros for dq, dk, dv; parts of one tensor where the layout says that the inputs were."""
    name = NVTE_QKV_Layout(int(layout)).name.removeprefix("NVTE_")
    together = 3 if "3" in name else 2 if "2" in name else 0
    if not together:
        return [torch.zeros(x.shape, dtype=x.dtype) for x in (q, k, v)]
    like = k if together == 2 else q
    place = like.dim() - (1 if f"H{together}D" in name else 2)
    whole = torch.zeros((*like.shape[:place], together, *like.shape[place:]), dtype=like.dtype)
    parts = [whole.select(place, number) for number in range(together)]
    return parts if together == 3 else [torch.zeros(q.shape, dtype=q.dtype), *parts]

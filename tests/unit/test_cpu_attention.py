"""The CPU's attention with sinks and windows against an explicit softmax in fp64, in blocks and over split documents."""

from __future__ import annotations

from itertools import accumulate, pairwise

import pytest
import torch

from dasd_megatron.cpu_backend.document_groups import QUERY_BLOCK
from dasd_megatron.megatron_model.packed_documents import PackedDocuments, packed_documents, rank_tokens

HEADS, GROUPS, DIM, SCALE = 6, 2, 20, 0.3
# Several in one call, one of several blocks of queries, and one token.
SLOTS = [12, 16, 4, 600, 8, 16]


def attention(window: int | None, sinks: torch.Tensor | None, dtype: torch.dtype = torch.float32) -> torch.nn.Module:
    """One layer's attention."""
    from megatron.core.transformer.enums import AttnMaskType
    from megatron.core.transformer.transformer_config import TransformerConfig

    from dasd_megatron.cpu_backend.attention import ReferenceAttention

    config = TransformerConfig(
        num_layers=1,
        hidden_size=HEADS * DIM,
        num_attention_heads=HEADS,
        softmax_type="vanilla" if sinks is None else "learnable",
        window_size=None if window is None else (window - 1, 0),
        params_dtype=dtype,
        use_cpu_initialization=True,
    )
    module = ReferenceAttention(config, 1, AttnMaskType.causal, "self", softmax_scale=SCALE)
    if sinks is not None:
        module.softmax_offset.data.copy_(sinks)
    return module


def explicit(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None, sinks: torch.Tensor | None
) -> torch.Tensor:
    """What it should compute: the whole matrix of probabilities of each document."""
    outputs = []
    for start, end in pairwise([0, *accumulate(SLOTS)]):
        k, v = (x[start:end].repeat_interleave(HEADS // GROUPS, 1) for x in (key, value))
        scores = torch.einsum("qhd,khd->hqk", query[start:end], k) * SCALE
        distance = torch.arange(end - start)[:, None] - torch.arange(end - start)
        hidden = (distance < 0) | (distance >= (window or end))
        scores = scores.masked_fill(hidden, float("-inf"))
        if sinks is not None:
            scores = torch.cat([scores, sinks[:, None, None].expand(-1, end - start, 1)], -1)
        outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1)[..., : end - start], v))
    return torch.cat(outputs).flatten(1)


def inputs(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Query, key, value, sinks and the gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    tokens = sum(SLOTS)
    sizes = [(tokens, HEADS, DIM), (tokens, GROUPS, DIM), (tokens, GROUPS, DIM), (HEADS,), (tokens, HEADS * DIM)]
    return [(2 * torch.randn(size, generator=generator)).to(dtype) for size in sizes]


def expected(window: int | None, with_sinks: bool, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """Output and gradients in fp64."""
    query, key, value, sinks, gradient = (tensor.double() for tensor in tensors)
    leaves = [query, key, value, *([sinks] if with_sinks else [])]
    for leaf in leaves:
        leaf.requires_grad_()
    output = explicit(query, key, value, window, sinks if with_sinks else None)
    return [output.detach(), *torch.autograd.grad(output, leaves, gradient)]


@pytest.mark.parametrize("with_sinks", [True, False])
@pytest.mark.parametrize("window", [None, 2, 7, 256, 300, 1000])
def test_equals_an_explicit_softmax(window: int | None, with_sinks: bool) -> None:
    tensors = inputs()
    query, key, value = (tensor.requires_grad_() for tensor in tensors[:3])
    module = attention(window, tensors[3] if with_sinks else None)
    output = module(query, key, value, None, packed_seq_params=packed_documents(SLOTS))
    found = [output, *torch.autograd.grad(output, [query, key, value, *module.parameters()], tensors[4])]
    for ours, theirs in zip(found, expected(window, with_sinks, tensors), strict=True):
        assert float((ours - theirs).norm()) < 2e-6 * float(theirs.norm())


@pytest.mark.parametrize("window", [None, 100])
def test_bf16(window: int | None) -> None:
    tensors = inputs(torch.bfloat16)
    query, key, value = (tensor.requires_grad_() for tensor in tensors[:3])
    module = attention(window, tensors[3], torch.bfloat16)
    output = module(query, key, value, None, packed_seq_params=packed_documents(SLOTS))
    found = [output, *torch.autograd.grad(output, [query, key, value, *module.parameters()], tensors[4])]
    for ours, theirs in zip(found, expected(window, True, tensors), strict=True):
        assert ours.dtype is torch.bfloat16
        assert float((ours - theirs).norm()) < 0.01 * float(theirs.norm())


@pytest.mark.parametrize("window", [None, 100])
def test_split_documents(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries of each context-parallel rank, which is given the keys of all: together they are the pack's."""
    # Here every rank has all keys, in the pack's order, without having to gather them.
    monkeypatch.setattr("dasd_megatron.cpu_backend.attention._gather_pack", lambda key, value, order: (key, value))
    tensors = inputs()
    wanted = expected(window, True, tensors)
    query, key, value = (tensor.requires_grad_() for tensor in tensors[:3])
    module = attention(window, tensors[3])
    leaves = [query, key, value, *module.parameters()]
    sums = [torch.zeros_like(leaf) for leaf in leaves]
    for rank in range(2):
        own = rank_tokens(SLOTS, 2, rank)
        output = module(query[own], key, value, None, packed_seq_params=packed_documents(SLOTS, 2, rank))
        assert float((output - wanted[0][own]).norm()) < 2e-6 * float(wanted[0][own].norm())
        for total, gradient in zip(sums, torch.autograd.grad(output, leaves, tensors[4][own]), strict=True):
            total += gradient
    for ours, theirs in zip(sums, wanted[1:], strict=True):
        assert float((ours - theirs).norm()) < 2e-6 * float(theirs.norm())


def test_memory_does_not_grow_with_the_square() -> None:
    """What is saved for the backward pass of a windowed layer with sinks, by document length."""

    def saved(length: int) -> int:
        storages: dict[int, int] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        query, key, value = (torch.randn(length, heads, DIM, requires_grad=True) for heads in (HEADS, GROUPS, GROUPS))
        documents: PackedDocuments = packed_documents([length])
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            module(query, key, value, None, packed_seq_params=documents)
        return sum(storages.values())

    module = attention(100, torch.zeros(HEADS))
    lengths = [4 * QUERY_BLOCK, 16 * QUERY_BLOCK]
    short, long = map(saved, lengths)
    assert long < 4.2 * short


def test_layers_by_their_number() -> None:
    """Windows are in the layers that the list names, whichever stage they are on."""
    from megatron.core.transformer.enums import AttnMaskType

    from dasd_megatron.cpu_backend.attention import ReferenceAttention

    config = attention(7, None).config
    config.window_attn_skip_freq = [1, 0, 0, 1]
    windows = [ReferenceAttention(config, number, AttnMaskType.causal, "self").window for number in range(1, 5)]
    assert windows == [7, None, None, 7]

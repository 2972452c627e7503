"""The padding planner, and micro-batches, over random lengths and layouts."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.config.training import ParallelConfig
from dasd_megatron.megatron_model.build_model import rotary_length
from dasd_megatron.megatron_model.micro_batch import Pack, make_micro_batches
from dasd_megatron.megatron_model.packed_documents import rank_tokens
from dasd_megatron.models.pack_padding import Alignment, alignment, document_slots
from dasd_megatron.models.parallel_layout import FP8_MULTIPLE
from dasd_megatron.training.data import HeldOutPacks, PackDataset
from tests.helpers.tiny_models import HELD_OUT_PACKS, random_packs

PARALLEL = st.builds(
    ParallelConfig,
    tensor=st.sampled_from([1, 2, 3, 4, 8]),
    context=st.sampled_from([1, 2, 3, 4, 8]),
    sequence=st.booleans(),
)
FP8 = st.sampled_from([None, *FP8_MULTIPLE])
LENGTHS = st.lists(st.integers(1, 300), min_size=1, max_size=12)


@given(LENGTHS, PARALLEL, FP8, st.integers(0, 4000))
def test_every_alignment_rule_holds(
    lengths: list[int], parallel: ParallelConfig, fp8: str | None, at_least: int
) -> None:
    align = alignment(parallel, fp8)
    slots = document_slots(lengths, align, at_least)
    total = sum(slots)
    assert total >= at_least
    # Each document has a slot of its own, and padding that isn't a document's is one document more.
    assert len(slots) in (len(lengths), len(lengths) + 1)
    assert all(0 <= slot - length < align.document for slot, length in zip(slots, lengths, strict=False))
    assert all(slot > 0 for slot in slots)
    if parallel.context > 1:  # two chunks of every document on every rank, padding included
        assert all(slot % (2 * parallel.context) == 0 for slot in slots)
    shards = parallel.context * (parallel.tensor if parallel.splits_sequence else 1)
    assert total % shards == 0
    if fp8 is not None:  # after the split over context and tensor-parallel ranks
        assert total // parallel.context // parallel.tensor % FP8_MULTIPLE[fp8] == 0
    # No more than is needed.
    assert total - max(sum(slots[: len(lengths)]), at_least) < align.pack


@given(LENGTHS, st.sampled_from([1, 2, 3, 4]))
def test_context_ranks_share_every_document_evenly(lengths: list[int], ranks: int) -> None:
    slots = document_slots(lengths, Alignment(2 * ranks, 2 * ranks))
    held = [rank_tokens(slots, ranks, rank) for rank in range(ranks)]
    assert sorted(torch.cat(held).tolist()) == list(range(sum(slots)))
    assert len({len(tokens) for tokens in held}) == 1
    start = 0
    for slot in slots:  # pairs of (query, earlier or same key) in the document: what causal attention costs
        own = [tokens[(tokens >= start) & (tokens < start + slot)] - start for tokens in held]
        assert len({int((tokens + 1).sum()) for tokens in own}) == 1
        start += slot


@given(LENGTHS, st.sampled_from([1, 2, 4]), st.sampled_from([1, 16]), st.randoms(use_true_random=False))
def test_a_micro_batch_predicts_within_documents_only(lengths: list[int], ranks: int, multiple: int, random) -> None:  # type: ignore[no-untyped-def]
    """Put together from its context-parallel shares, it holds each target once, and nothing else is trained on."""
    total = sum(lengths)
    ids = np.arange(1, total + 1, dtype=np.int32)
    targets = np.array([random.random() < 0.7 for _ in range(total)])
    align = (
        alignment(ParallelConfig(context=ranks), None) if multiple == 1 else Alignment(2 * ranks, 2 * ranks * multiple)
    )
    shares = [make_micro_batches([Pack(ids, targets, lengths)], align, ranks, rank)[0] for rank in range(ranks)]
    trained = torch.cat([share.labels[0, share.targets] for share in shares])
    begins = np.cumsum([0, *lengths[:-1]])
    expected = [int(ids[i]) for i in range(total) if targets[i] and i not in begins]
    assert sorted(trained.tolist()) == expected
    for share in shares:
        where = share.targets
        assert torch.equal(share.labels[0, where], share.input_ids[0, where] + 1)  # the same document's next token
        assert int((~share.padding).sum()) == int((share.input_ids > 0).sum())
        assert not bool(share.padding[0, where].any())
    positions = {
        int(token): int(position)
        for share in shares
        for token, position in zip(share.input_ids[0], share.position_ids[0], strict=True)
        if token > 0
    }
    assert positions == {
        int(begin + n + 1): n for begin, length in zip(begins, lengths, strict=True) for n in range(length)
    }


def test_micro_batches_of_a_step_are_equally_long() -> None:
    packs = [Pack(np.ones(n, np.int32), np.ones(n, np.bool_), [n]) for n in (5, 30, 17)]
    batches = make_micro_batches(packs, Alignment(1, 4))
    assert [batch.input_ids.shape[1] for batch in batches] == [32, 32, 32]
    assert [int((~batch.padding).sum()) for batch in batches] == [5, 30, 17]
    assert [len(batch.documents.cu_seqlens_q) for batch in batches] == [3, 3, 3]


def test_padding_that_equals_the_end_of_turn_is_still_learned() -> None:
    """Masks depend on position: a document that ends in the pad id is trained to end so."""
    pack = Pack(np.array([5, 0], np.int32), np.array([False, True]), [2])
    assert make_micro_batches([pack], Alignment(1, 4))[0].targets.tolist() == [0]


@pytest.mark.parametrize(("fp8", "expected"), [(None, 12), ("delayed", 192), ("blockwise", 1536), ("mxfp8", 384)])
def test_alignment_of_a_layout(fp8: str | None, expected: int) -> None:
    assert alignment(ParallelConfig(tensor=4, context=3), fp8) == Alignment(6, expected)


def test_the_order_of_packs_is_reshuffled_every_epoch_and_depends_on_the_seed_alone(tmp_path: Path) -> None:
    artifact = Artifact(random_packs(tmp_path / "packs", 7))
    packs = PackDataset(artifact, 3, True)
    epochs = [[packs.index(sample) for sample in range(7 * epoch, 7 * epoch + 7)] for epoch in range(4)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    again = PackDataset(artifact, 3, True)
    assert [again.index(sample) for sample in (20, 3, 11)] == [epochs[2][6], epochs[0][3], epochs[1][4]]
    assert [PackDataset(artifact, 4, True).index(sample) for sample in range(7)] != epochs[0]


@pytest.mark.parametrize("multiple", [1, 2])
@pytest.mark.parametrize(("ranks", "most"), [(1, 64), (2, 64), (4, 64), (2, 1)])
def test_held_out_packs_are_shared_out(tmp_path: Path, ranks: int, most: int, multiple: int) -> None:
    """As many to each rank, and each target once."""
    packs = HeldOutPacks(Artifact(random_packs(tmp_path / "packs", 2)), 3, True, most)
    assert len(packs) == min(most, HELD_OUT_PACKS)
    alone = sorted(int(pack.targets.sum()) for pack in packs.share(0, 1))
    shares = [packs.share(rank, ranks, multiple) for rank in range(ranks)]
    [each] = {len(share) for share in shares}
    assert each % multiple == 0
    assert sorted(count for share in shares for pack in share if (count := int(pack.targets.sum()))) == alone


def test_without_isolation_a_pack_is_one_document(tmp_path: Path) -> None:
    artifact = Artifact(random_packs(tmp_path / "packs", 2))
    isolated, joined = (PackDataset(artifact, 3, isolate).pack(0) for isolate in (True, False))
    assert len(isolated.lengths) > 1
    assert joined.lengths == [sum(isolated.lengths)]


@given(st.integers(1, 1 << 17))
def test_rotary_angles_are_kept_for_few_lengths(longest: int) -> None:
    found = rotary_length(SimpleNamespace(max_seqlen_q=longest))
    assert longest <= found <= 1.25 * longest + 1
    assert len(bin(found).strip("0b")) <= 3  # four between powers of two

"""Sequences in packs for the engine `megatron`, and scores of packs back to the sequences."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasd_megatron.sampling.engines.sequence_packs import CollectedScores, packed_by_length


@given(st.lists(st.integers(0, 40), max_size=30), st.integers(1, 50))
def test_every_sequence_is_in_one_pack_that_is_no_longer_than_it_has_to_be(lengths: list[int], limit: int) -> None:
    packs = packed_by_length([list(range(length)) for length in lengths], limit)
    assert sorted(number for pack in packs for number in pack.numbers) == [n for n, k in enumerate(lengths) if k > 1]
    for pack in packs:
        assert pack.lengths == [lengths[number] for number in pack.numbers]
        assert pack.ids.tolist() == [token for length in pack.lengths for token in range(length)]
        assert len(pack.ids) <= limit or len(pack.numbers) == 1
    ordered = [length for pack in packs for length in pack.lengths]
    assert ordered == sorted(ordered, reverse=True)


@given(st.lists(st.integers(0, 20), min_size=1, max_size=12), st.integers(1, 4), st.booleans())
def test_scores_find_their_sequences(lengths: list[int], ranks: int, brier: bool) -> None:
    """Each token's scores are made of its number in its sequence and the sequence's; ranks have parts of packs, in any order."""
    sequences = [list(range(length)) for length in lengths]
    collected = CollectedScores(sequences, brier)
    random = np.random.default_rng(0)
    for pack in packed_by_length(sequences, 30):
        sequence = np.repeat(pack.numbers, pack.lengths)
        tokens = random.permutation(np.flatnonzero(pack.ids > 0))  # the first tokens aren't scored
        values = [-sequence[tokens] - pack.ids[tokens] / 100, pack.ids[tokens], sequence[tokens]]
        scores = np.stack(values[: 3 if brier else 2]).astype(np.float32)
        parts = np.array_split(np.arange(len(tokens)), ranks)
        collected.add(pack, [(tokens[part], scores[:, part]) for part in parts])
    for number, (length, found) in enumerate(zip(lengths, collected.all(), strict=True)):
        expected = np.arange(1, length)
        np.testing.assert_allclose(found.logprobs, -number - expected / 100, atol=1e-5)
        np.testing.assert_array_equal(found.ranks, expected)
        assert (found.brier is None) is not brier
        assert found.brier is None or (found.brier == number).all()


def test_a_token_without_scores_is_a_defect() -> None:
    sequences = [[5, 6, 7]]
    collected = CollectedScores(sequences, brier=False)
    [pack] = packed_by_length(sequences, 10)
    with pytest.raises(AssertionError, match="tokens are missing"):
        collected.add(pack, [(np.array([1]), np.ones((2, 1), np.float32))])

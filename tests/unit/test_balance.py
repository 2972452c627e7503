"""A step's packs, shared out to data-parallel ranks by cost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.balance import MODELS, pack_costs, waits
from dasd_megatron.models.hf_config import shape_of
from dasd_megatron.training.balance import shared_out
from tests.helpers.published_models import CONFIGS

COSTS = st.integers(1, 8).flatmap(
    lambda ranks: st.tuples(
        st.just(ranks),
        st.integers(1, 8).flatmap(
            lambda each: st.lists(st.floats(0, 1e18), min_size=each * ranks, max_size=each * ranks)
        ),
    )
)


@given(COSTS)
def test_every_pack_is_one_ranks(case: tuple[int, list[float]]) -> None:
    ranks, costs = case
    shares = shared_out(costs, ranks)
    assert sorted(index for share in shares for index in share) == list(range(len(costs)))
    assert {len(share) for share in shares} == {len(costs) // ranks}


@given(COSTS)
def test_nth_packs_are_alike(case: tuple[int, list[float]]) -> None:
    """No rank's n-th pack is cheaper than another's next one; so loads differ by no more than the dearest pack."""
    ranks, costs = case
    rows = np.array([[costs[index] for index in share] for share in shared_out(costs, ranks)]).T
    assert (rows[:-1].min(1) >= rows[1:].max(1)).all()
    loads = rows.sum(0)
    assert loads.max() - loads.min() <= max(costs) * (1 + 1e-9)


def test_of_the_cheap_ones_the_busy_rank_gets_the_cheapest() -> None:
    assert shared_out([1, 9, 4, 2, 3, 8], 2) == [[1, 4, 3], [5, 2, 0]]
    assert shared_out([5, 5, 5, 5], 2) == [[0, 2], [1, 3]]
    assert shared_out([2, 7], 1) == [[1, 0]]


def test_on_the_papers_lengths_ranks_hardly_wait() -> None:
    costs = pack_costs(shape_of(CONFIGS[MODELS[0]], Path(MODELS[0])), 5000, 65_536)
    before, after = (waits(costs, 8, 64, by_cost) for by_cost in (False, True))
    assert before[0] > 0.1
    assert after[0] < 0.01
    assert after[1] < before[1] / 4
    assert waits(costs, 64, 64, True) == waits(costs, 64, 64, False)  # a pack each: nothing to share out

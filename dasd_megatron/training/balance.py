"""Which of a step's packs each data-parallel rank takes: packs of one length differ in attention, and a step takes as long as its
slowest rank. No torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def shared_out(costs: Sequence[float], ranks: int) -> list[list[int]]:
    """For each rank the indices of its packs, an equal number, in the order in which it trains on them: the longest work first.

    Ranks with experts of one another wait at each micro-batch, not only at the step's end, so the n-th packs of all ranks are
    alike, too: of the dearest packs that are left each rank gets one, the one that has least to do so far the dearest.

    Args:
        costs: of each pack, in any unit; their number is a multiple of `ranks`.
    """
    by_cost = np.argsort(-np.asarray(costs, np.float64), kind="stable")
    shares: list[list[int]] = [[] for _ in range(ranks)]
    load = np.zeros(ranks)
    for alike in by_cost.reshape(-1, ranks):
        for rank, index in zip(np.argsort(load, kind="stable"), alike.tolist(), strict=True):
            shares[rank].append(index)
            load[rank] += costs[index]
    return shares

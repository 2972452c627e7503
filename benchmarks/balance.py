#!/usr/bin/env python
"""How long data-parallel ranks wait for one another, because documents differ in length: simulated, on the paper's lengths.

Responses of the paper's lengths are packed as the step `pack` does it, and each optimizer step's packs go to the ranks as they
come (before: every n-th to a rank) or shared out by cost (after). What a pack takes is its model FLOPs. Reported is the share of
the time that ranks wait: those of a dense model at the step's end, those that hold experts of one another at each micro-batch.
The last line is JSON.

examples:
  python -m benchmarks.balance
  python -m benchmarks.balance --global-batch 256
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.paper_lengths import MAX_TOKENS, MEAN_TOKENS, paper_lengths
from dasd_megatron.curation.packing import WINDOW, pack
from dasd_megatron.models.flops import training_flops
from dasd_megatron.models.hf_config import shape_of
from dasd_megatron.models.shape import ModelShape
from dasd_megatron.training.balance import shared_out
from tests.helpers.published_models import CONFIGS

MODELS = ("Qwen3-4B-Instruct-2507", "Qwen3-30B-A3B-Instruct-2507")


def pack_costs(shape: ModelShape, documents: int, context_length: int) -> NDArray[np.float64]:
    """Model FLOPs of packs [n], in the order of training."""
    random = np.random.default_rng(0)
    lengths = paper_lengths(random, documents).clip(max=context_length)
    costs = []
    for window in np.array_split(lengths, max(1, int(lengths.sum() // (WINDOW * context_length)))):
        costs += [training_flops(shape, window[group].tolist()) for group in pack(window.tolist(), context_length)]
    return random.permutation(costs)


def waits(costs: NDArray[np.float64], ranks: int, global_batch: int, by_cost: bool) -> tuple[float, float]:
    """Share of the time of all steps that ranks wait: at each step's end, and at each micro-batch."""
    worked = at_end = at_each = 0.0
    for step in costs[: len(costs) // global_batch * global_batch].reshape(-1, global_batch):
        shares = shared_out(step.tolist(), ranks) if by_cost else np.arange(global_batch).reshape(-1, ranks).T
        of_ranks = step[np.asarray(shares)]  # [ranks, micro-batches]
        worked += float(step.sum())
        at_end += ranks * float(of_ranks.sum(1).max())
        at_each += ranks * float(of_ranks.max(0).sum())
    return 1 - worked / at_end, 1 - worked / at_each


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=50_000)
    parser.add_argument("--context-length", type=int, default=MAX_TOKENS, help="of packs, in tokens")
    parser.add_argument("--global-batch", type=int, default=64, help="packs of an optimizer step")
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64], help="data-parallel")
    args = parser.parse_args()
    print(f"{args.documents:,} responses of {MEAN_TOKENS:,} tokens on average, {args.global_batch} packs a step")
    found = []
    for model in MODELS:
        costs = pack_costs(shape_of(CONFIGS[model], Path(model)), args.documents, args.context_length)
        spread = float(costs.std() / costs.mean())
        print(f"{model}: {len(costs):,} packs, whose FLOPs vary by {spread:.1%} (standard deviation over mean)")
        for ranks in args.ranks:
            before, after = (waits(costs, ranks, args.global_batch, by_cost) for by_cost in (False, True))
            for place, old, new in zip(("step", "micro-batch"), before, after, strict=True):
                print(f"  data={ranks:<3} ranks wait at each {place:<11} before {old:6.2%}   after {new:6.2%}")
                found.append({"model": model, "data": ranks, "at": place, "before": old, "after": new})
    print(json.dumps(found))


if __name__ == "__main__":
    main()

"""Who is chosen of all scored candidates, under a budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dasd_megatron.config.curation import SelectionConfig
from dasd_megatron.sampling.seeds import sample_seed


def choose(candidates: pa.Table, selection: SelectionConfig, seed: int) -> NDArray[np.bool_]:
    """Whether each candidate (schema CANDIDATES) is chosen, [candidates].

    Choice is within a prompt, so that topics on which the models differ don't crowd out the others: best score first,
    ties by mean difference. A response that is already chosen, for whichever prompt, isn't chosen again. A budget in all takes
    every prompt's first choice before any second one, prompts in random order; a budget by domain does so within each.
    """
    uuids, indices = candidates["uuid"].to_pylist(), candidates["sample_index"].to_pylist()
    keys = [np.array([sample_seed(seed, "select", uuid, index) for uuid, index in zip(uuids, indices, strict=True)])]
    if selection.method == "divergence":
        keys += [-candidates[name].to_numpy() for name in ("mean_difference", selection.score)]
    encoded = candidates["uuid"].combine_chunks().dictionary_encode()
    prompts, hashes = encoded.indices.to_numpy(), candidates["text_hash"].to_numpy()
    of_prompt = [sample_seed(seed, "budget", uuid) for uuid in encoded.dictionary.to_pylist()]
    counts, seen = [0] * len(of_prompt), set()
    order: list[tuple[int, int, int]] = []
    for place in np.lexsort([*keys, prompts]).tolist():
        prompt, text = prompts[place], hashes[place]
        if text not in seen and counts[prompt] < selection.responses_per_prompt:
            order.append((counts[prompt], of_prompt[prompt], place))
            counts[prompt] += 1
            seen.add(text)
    chosen = np.zeros(len(candidates), np.bool_)
    places = [place for _, _, place in sorted(order)]
    if isinstance(selection.total, dict):
        domains = candidates["domain"].to_pylist()
        places = _within(selection.total, places, domains)
    else:
        places = places[: selection.total]
    chosen[places] = True
    return chosen


def _within(budget: Mapping[str, int], places: Sequence[int], domains: Sequence[str | None]) -> list[int]:
    """The first of these places in each domain, as many as the budget has for it."""
    left, within = dict(budget), []
    for place in places:
        if left.get(domains[place] or "", 0):
            left[domains[place] or ""] -= 1
            within.append(place)
    return within


def budget_of(selection: SelectionConfig) -> int | None:
    """In all; None without one."""
    return sum(selection.total.values()) if isinstance(selection.total, dict) else selection.total

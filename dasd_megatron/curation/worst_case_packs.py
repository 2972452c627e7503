"""Step `worst_case_packs`: what a rehearsal trains on. Packs that need most: one document that fills the context, or very many.

One document takes most memory and time in attention; very many take most padding and bookkeeping. Tokens are random, and
all of them are targets but the first of a document.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from dasd_megatron.config.base import Positive
from dasd_megatron.curation.packing import PACKS
from dasd_megatron.models.hf_config import read_config, shape_of
from dasd_megatron.steps.cost_estimate import Documents, InputEstimates, Packs
from dasd_megatron.steps.step import StepConfig, StepContext, StepKind

# Tokens of a short document: odd, so that every layout pads it.
SHORT = 63


class WorstCasePacksConfig(StepConfig):
    """Config of a step `worst_case_packs`: as many packs as `steps` optimizer steps of `global_batch` take."""

    context_length: Positive
    global_batch: Positive
    steps: Positive
    seed: int
    # See `rehearsal.setting` in the recipe: the stage that reads the packs runs again where it has changed.
    setting: str


class WorstCasePacksStep(StepKind[WorstCasePacksConfig]):
    """Knows the vocabulary from `model`; writes the table `packs`."""

    name = "worst_case_packs"

    def run(self, context: StepContext[WorstCasePacksConfig]) -> dict[str, Any]:
        """A pack at a time: one document, many, one document, ..."""
        config, vocabulary = context.config, _vocabulary(context)
        chance = np.random.default_rng(config.seed)
        count = config.global_batch * config.steps
        documents = 0
        with context.output.shard(0, "packs", 1 << 20) as writer:
            for number in range(count):
                lengths = worst_lengths(config.context_length, number)
                ids = chance.integers(0, vocabulary, config.context_length, np.int32)
                writer.write({"packs": _pack(number, lengths, ids)})
                documents += len(lengths)
        tokens = count * config.context_length
        counts = {"documents": documents, "packs": count, "tokens": tokens, "trained_tokens": tokens - documents}
        return {"counts": counts, "context_length": config.context_length, "fill": 1.0}

    def packs(self, config: WorstCasePacksConfig, inputs: InputEstimates) -> Packs:
        """Half of them of one document, half of many."""
        count = config.global_batch * config.steps
        lengths = [worst_lengths(config.context_length, number) for number in range(2)]
        made = [
            Documents(count / 2 * len(of_pack), count / 2 * len(of_pack), 0, config.context_length / len(of_pack))
            for of_pack in lengths
        ]
        return Packs(count, tuple(made))


def worst_lengths(context_length: int, number: int) -> list[int]:
    """Documents of the pack of that number: one in every second, in the others as many as are SHORT, and the rest."""
    if number % 2 == 0 or context_length <= SHORT:
        return [context_length]
    rest = context_length % SHORT
    return [SHORT] * (context_length // SHORT) + ([rest] if rest else [])


def _vocabulary(context: StepContext[WorstCasePacksConfig]) -> int:
    folder = context.inputs["model"]
    return shape_of(read_config(folder), folder).vocabulary


def _pack(number: int, lengths: list[int], ids: np.ndarray[Any, np.dtype[np.int32]]) -> pa.Table:
    mask = np.ones(len(ids), np.bool_)
    mask[np.cumsum([0, *lengths[:-1]])] = False
    row = {
        "input_ids": ids,
        "loss_mask": mask,
        "document_lengths": lengths,
        "uuids": [f"worst-case-{number}-{document}" for document in range(len(lengths))],
        "tokens": len(ids),
        "trained_tokens": int(mask.sum()),
    }
    return pa.Table.from_pylist([row], PACKS)

"""Step `pack`: documents (prompt and response in the student's tokens) packed to the context length.

A pack keeps its documents' lengths, so that training isolates them from one another; loss falls on responses alone, end of
turn included. Masks depend on position, never on token id: a pad token that equals the end of turn would unteach stopping.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dasd_megatron.config.base import Positive
from dasd_megatron.sampling.seeds import sample_seed
from dasd_megatron.steps.cost_estimate import PACKED, Cost, InputEstimates, Packs
from dasd_megatron.steps.step import StepConfig, StepContext, StepKind
from dasd_megatron.utils.errors import UserError

PACKS = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("loss_mask", pa.list_(pa.bool_())),  # whether a token is a target
        ("document_lengths", pa.list_(pa.int32())),
        ("uuids", pa.list_(pa.string())),
    ]
)
# Documents in memory at a time; each window is packed on its own and becomes one shard.
WINDOW = 16_384


class PackStepConfig(StepConfig):
    """Config of a step `pack`."""

    context_length: Positive
    seed: int
    # Of a mixed-policy stage: see `mixed_policy` in the recipe. None: there are no rows of the stage before.
    off_policy_ratio: float | None = None
    mask_prefix: bool = False


class PackStep(StepKind[PackStepConfig]):
    """Reads `responses` and, in a mixed-policy stage, `off_policy` rows of the stage before."""

    name = "pack"
    command = "curate"

    def run(self, context: StepContext[PackStepConfig]) -> dict[str, Any]:
        """Writes the table `packs`."""
        length, seed = context.config.context_length, context.config.seed
        packs = documents = tokens = trained = 0
        for shard, window in enumerate(_windows(_documents(context))):
            window.sort(key=lambda doc: sample_seed(seed, "pack", doc.uuid, doc.sample_index, doc.prefix_bytes))
            groups = pack([len(doc.input_ids) for doc in window], length)
            rows = [_pack_row([window[index] for index in group]) for group in groups]
            context.output.write_shard("packs", shard, pa.Table.from_pylist(rows, PACKS))
            packs += len(rows)
            documents += len(window)
            tokens += sum(len(doc.input_ids) for doc in window)
            trained += sum(int(doc.loss_mask.sum()) for doc in window)
        if not packs:
            raise UserError(f"{context.name}: there is no response to train on; the filters dropped every one of them")
        return {
            "counts": {"documents": documents, "packs": packs, "tokens": tokens, "trained_tokens": trained},
            "context_length": length,
            "fill": tokens / (packs * length),
        }

    def packs(self, config: PackStepConfig, inputs: InputEstimates) -> Packs:
        """Full ones."""
        documents = [inputs.documents("responses")]
        if config.off_policy_ratio is not None:
            rows = inputs.documents("off_policy")
            wanted = round(config.off_policy_ratio * documents[0].count)
            documents.append(rows.fewer(min(1.0, wanted / rows.count)))
        tokens = sum(part.tokens for part in documents)
        return Packs(math.ceil(tokens / config.context_length), tuple(documents))

    def cost(self, config: PackStepConfig, inputs: InputEstimates) -> Cost:
        """The student's tokens alone."""
        packs, counted = inputs.own_packs(), inputs.is_counted("responses")
        size = packs.tokens * PACKED
        return Cost(packs.count, "packs", packs.tokens, packs.tokens, bytes=size, counted=counted)


@dataclass(frozen=True)
class Document:
    """One training document: `input_ids` int32 and `loss_mask` bool, both [n]."""

    uuid: str
    sample_index: int
    prefix_bytes: int
    input_ids: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]


def document(row: Mapping[str, Any], mask_prefix: bool) -> Document:
    """The document of one filtered response."""
    prompt, response = row["student_prompt_ids"], row["student_token_ids"]
    first = row["prefix_bytes"] if mask_prefix else 0
    trained = np.asarray(row["student_token_starts"]) >= first
    return Document(
        row["uuid"],
        row["sample_index"],
        row["prefix_bytes"],
        np.asarray([*prompt, *response], np.int32),
        np.concatenate([np.zeros(len(prompt), np.bool_), trained]),
    )


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Greedy best fit: each document goes to the fullest pack that still holds it. Returns document indices a pack.

    Raises UserError for a document longer than the capacity (filters drop those before).
    """
    packs: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (free tokens, pack), sorted
    for index, length in enumerate(lengths):
        if length > capacity:
            raise UserError(f"document {index} has {length} tokens, more than packing.context_length={capacity}")
        place = bisect_left(room, (length, -1))
        if place == len(room):
            packs.append([])
            free, target = capacity, len(packs) - 1
        else:
            free, target = room.pop(place)
        packs[target].append(index)
        if free > length:
            insort(room, (free - length, target))
    return packs


def _documents(context: StepContext[PackStepConfig]) -> Iterator[Document]:
    """All documents, a shard of their rows in memory at a time."""
    responses, config = context.artifact("responses"), context.config
    yield from (document(row, config.mask_prefix) for row in responses.rows("responses"))
    if config.off_policy_ratio is None:
        return
    off_policy = context.artifact("off_policy")
    keys = [(row["uuid"], row["sample_index"]) for row in off_policy.rows("responses", ["uuid", "sample_index"])]
    keys.sort(key=lambda key: sample_seed(config.seed, "off_policy", *key))
    chosen = set(keys[: round(config.off_policy_ratio * responses.manifest["counts"]["responses"])])
    rows = off_policy.rows("responses")
    yield from (document(row, config.mask_prefix) for row in rows if (row["uuid"], row["sample_index"]) in chosen)


def _windows(documents: Iterable[Document]) -> Iterator[list[Document]]:
    iterator = iter(documents)
    while window := list(islice(iterator, WINDOW)):
        yield window


def _pack_row(documents: Sequence[Document]) -> dict[str, Any]:
    return {
        "input_ids": np.concatenate([doc.input_ids for doc in documents]),
        "loss_mask": np.concatenate([doc.loss_mask for doc in documents]),
        "document_lengths": [len(doc.input_ids) for doc in documents],
        "uuids": [doc.uuid for doc in documents],
    }

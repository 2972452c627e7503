"""Step `pack`: documents (prompt and response in the student's tokens) packed to the context length.

A pack keeps its documents' lengths, so that training isolates them from one another; loss falls on responses alone, end of
turn included. Masks depend on position, never on token id: a pad token that equals the end of turn would unteach stopping.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.config.base import Positive
from dasd_megatron.curation.data_step import DataStepKind
from dasd_megatron.curation.documents import DocumentIndex, DocumentTokens, read_documents
from dasd_megatron.sampling.seeds import sample_chance, sample_seed
from dasd_megatron.steps.cost_estimate import PACKED, Cost, InputEstimates, Packs
from dasd_megatron.steps.empty_result import refuse_empty
from dasd_megatron.steps.step import ShardWork, StepConfig, StepContext
from dasd_megatron.utils.errors import UserError

PACKS = pa.schema(
    [
        ("input_ids", pa.list_(pa.int32())),
        ("loss_mask", pa.list_(pa.bool_())),  # whether a token is a target
        ("document_lengths", pa.list_(pa.int32())),
        ("uuids", pa.list_(pa.string())),
        ("tokens", pa.int32()),
        ("trained_tokens", pa.int32()),
    ]
)
# The table of what isn't trained on.
HELD_OUT = "held_out"
# Full packs that a shard's documents would fill: those are in memory together, and packed on their own.
WINDOW = 2048
# Packs that are written at a time.
BATCH = 64


class PackStepConfig(StepConfig):
    """Config of a step `pack`."""

    context_length: Positive
    seed: int
    # Of a mixed-policy stage: see `mixed_policy` in the recipe. None: there are no rows of the stage before.
    off_policy_ratio: float | None = None
    mask_prefix: bool = False
    # See `packing` in the recipe.
    held_out: float = 0.0


class PackStep(DataStepKind[PackStepConfig]):
    """Reads `responses` and, in a mixed-policy stage, `off_policy` rows of the stage before; a shard is a window of documents.

    Documents that are held out are packed in the same way, in the table `held_out`.
    """

    name = "pack"
    command = "curate"
    table: ClassVar[str] = "packs"
    tokens_per_second: ClassVar[float] = 15e6
    # Training reads packs one by one, in random order.
    group_bytes: ClassVar[int] = 1 << 20

    def shard_count(self, context: StepContext[PackStepConfig]) -> int:
        """Windows of documents."""
        return len(_windows(context))

    def open(self, context: StepContext[PackStepConfig]) -> ShardWork:
        """Packs a window's documents."""
        config, windows = context.config, _windows(context)
        artifacts = _sources(context)

        def work(shard: int) -> Iterator[Mapping[str, pa.Table]]:
            documents = read_documents(windows[shard], artifacts, config.mask_prefix)
            order = np.random.default_rng([config.seed, shard]).permutation(len(windows[shard]))
            held_out = _held_out(documents.uuids, config)[order]
            tables = {self.table: order[~held_out], **({HELD_OUT: order[held_out]} if config.held_out else {})}
            for table, chosen in tables.items():
                packs = [chosen[group] for group in pack(windows[shard].length[chosen].tolist(), config.context_length)]
                if not packs:
                    yield {table: PACKS.empty_table()}
                for first in range(0, len(packs), BATCH):
                    yield {table: _pack_table(documents, packs[first : first + BATCH])}

        return work

    def summarize(self, context: StepContext[PackStepConfig]) -> dict[str, Any]:
        """Documents, packs and tokens, and how full the packs are."""
        counts = _counts(context, self.table)
        if not counts["packs"]:
            message = f"{context.name}: there is no response to train on; the filters dropped every one of them"
            refuse_empty(context.config, message)
        length = context.config.context_length
        return {
            "counts": counts,
            "context_length": length,
            "fill": counts["tokens"] / (counts["packs"] * length or 1),
            **_held_out_facts(context),
            **_off_policy_facts(context),
        }

    def packs(self, config: PackStepConfig, inputs: InputEstimates) -> Packs:
        """Full ones."""
        documents = [inputs.documents("responses")]
        if config.off_policy_ratio is not None:
            rows = inputs.documents("off_policy")
            wanted = round(config.off_policy_ratio * documents[0].count)
            documents.append(rows.fewer(min(1.0, wanted / rows.count)))
        documents = [part.fewer(1 - config.held_out) for part in documents]
        tokens = sum(part.tokens for part in documents)
        return Packs(math.ceil(tokens / config.context_length), tuple(documents))

    def shards(self, config: PackStepConfig, inputs: InputEstimates) -> int:
        """Windows of documents."""
        return math.ceil(inputs.own_packs().count / WINDOW)

    def cost(self, config: PackStepConfig, inputs: InputEstimates) -> Cost:
        """The student's tokens alone."""
        packs, counted = inputs.own_packs(), inputs.is_counted("responses")
        size = packs.tokens * PACKED
        return Cost(packs.count, "packs", packs.tokens, packs.tokens, bytes=size, counted=counted)


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Packs of documents, almost all of them full. Returns document indices a pack.

    Packs begin with the documents that are longer than half of one; these and all others come in the order given, so that a
    pack's documents are of all lengths, until one or two can fill it: then those that fill it best. No two packs could have
    been one.
    Raises UserError for a document longer than the capacity (filters drop those before).
    """
    sizes = np.asarray(lengths, np.int64)
    if len(sizes) and sizes.max() > capacity:
        index = int(sizes.argmax())
        raise UserError(f"document {index} has {sizes[index]} tokens, more than packing.context_length={capacity}")
    left = _Documents(sizes, [*np.flatnonzero(2 * sizes > capacity), *np.flatnonzero(2 * sizes <= capacity)])
    packs: list[list[int]] = []
    while len(left):
        packs.append([left.take_next()])
        room = capacity - int(sizes[packs[-1][0]])
        while len(left) and left.smallest <= room:
            chosen = left.take_best(room)
            packs[-1] += chosen
            room -= int(sizes[chosen].sum())
    return packs


class _Documents:
    """Documents that are in no pack yet, by size and in order."""

    def __init__(self, sizes: NDArray[np.int64], order: Sequence[int]) -> None:
        self._sizes, self._order, self._place = sizes, order, 0
        self._taken = np.zeros(len(sizes), np.bool_)
        # One number for each, ascending with its size.
        self._keys = np.sort(sizes * len(sizes) + np.arange(len(sizes)))

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def smallest(self) -> int:
        """The least size."""
        return int(self._keys[0]) // len(self._sizes)

    def take_next(self) -> int:
        """The next one in order."""
        return self._take(self._next())

    def take_best(self, room: int) -> list[int]:
        """The next one in order; but where one or two can fill the room, those that do so best."""
        count = len(self._sizes)
        sizes = self._keys[: np.searchsorted(self._keys, (room + 1) * count)] // count
        if room > 2 * sizes[-1] and self._sizes[self._next()] <= room:
            return [self.take_next()]
        places = np.arange(1, len(sizes))
        partners = np.minimum(np.searchsorted(sizes, room - sizes[places], side="right"), places) - 1
        sums = np.where(partners >= 0, sizes[places] + sizes[partners], 0)
        best = [len(sizes) - 1]
        if len(sums) and sums.max() > sizes[-1]:
            best = [int(places[sums.argmax()]), int(partners[sums.argmax()])]
        return [self._take(int(self._keys[place]) % count) for place in best]

    def _next(self) -> int:
        while self._taken[self._order[self._place]]:
            self._place += 1
        return int(self._order[self._place])

    def _take(self, index: int) -> int:
        place = np.searchsorted(self._keys, int(self._sizes[index]) * len(self._sizes) + index)
        self._keys = np.delete(self._keys, place)
        self._taken[index] = True
        return index


def _sources(context: StepContext[PackStepConfig]) -> list[Artifact]:
    return [context.artifact(name) for name in ("responses", "off_policy") if name in context.inputs]


def _held_out(uuids: Sequence[str], config: PackStepConfig) -> NDArray[np.bool_]:
    """Which documents [documents] are held out: all of a prompt, in every stage."""
    chances = (sample_chance(config.seed, HELD_OUT, uuid) for uuid in uuids)
    return np.fromiter((chance < config.held_out for chance in chances), np.bool_, len(uuids))


def _counts(context: StepContext[PackStepConfig], table: str) -> dict[str, int]:
    """Of a table of packs."""
    packs = documents = tokens = trained = 0
    for shard in context.output.tables(table, ["document_lengths", "tokens", "trained_tokens"]):
        packs += len(shard)
        documents += pc.sum(pc.list_value_length(shard["document_lengths"])).as_py() or 0
        tokens += pc.sum(shard["tokens"]).as_py() or 0
        trained += pc.sum(shard["trained_tokens"]).as_py() or 0
    return {"documents": documents, "packs": packs, "tokens": tokens, "trained_tokens": trained}


def _held_out_facts(context: StepContext[PackStepConfig]) -> dict[str, Any]:
    if not context.config.held_out:
        return {}
    counts = _counts(context, HELD_OUT)
    if not counts["packs"]:
        print(
            f"{context.name}: packing.held_out={context.config.held_out:g} holds out none of so few responses: the stage has no "
            "held-out loss",
            file=sys.stderr,
        )
    return {HELD_OUT: counts}


def _windows(context: StepContext[PackStepConfig]) -> list[DocumentIndex]:
    chosen = [None, *([_off_policy(context)] if context.config.off_policy_ratio is not None else [])]
    index = DocumentIndex.of(list(zip(_sources(context), chosen, strict=True)))
    return index.windows(WINDOW * context.config.context_length)


def _off_policy(context: StepContext[PackStepConfig]) -> NDArray[np.bool_]:
    """Which rows of the stage before are taken: as many as the ratio asks for, or all."""
    keys = context.artifact("off_policy").read("responses", ["uuid", "sample_index"])
    pairs = zip(keys["uuid"].to_pylist(), keys["sample_index"].to_pylist(), strict=True)
    chances = [sample_seed(context.config.seed, "off_policy", uuid, index) for uuid, index in pairs]
    chosen = np.zeros(len(keys), np.bool_)
    chosen[np.argsort(chances, kind="stable")[: _wanted_off_policy(context)]] = True
    return chosen


def _wanted_off_policy(context: StepContext[PackStepConfig]) -> int:
    return round((context.config.off_policy_ratio or 0.0) * context.artifact("responses").row_count("responses"))


def _off_policy_facts(context: StepContext[PackStepConfig]) -> dict[str, Any]:
    if context.config.off_policy_ratio is None:
        return {}
    wanted, found = _wanted_off_policy(context), context.artifact("off_policy").row_count("responses")
    if found < wanted:
        print(
            f"{context.name}: mixed_policy.off_policy_ratio={context.config.off_policy_ratio:g} asks for {wanted} rows of the "
            f"stage before, which has {found}: all of them are taken",
            file=sys.stderr,
        )
    return {"off_policy": {"wanted": wanted, "taken": min(wanted, found)}}


def _pack_table(documents: DocumentTokens, packs: Sequence[NDArray[np.int64]]) -> pa.Table:
    indices = np.concatenate(packs)
    starts, first_targets = documents.starts[indices], documents.first_targets[indices]
    lengths = (documents.starts[indices + 1] - starts).astype(np.int32)
    ids = np.concatenate([documents.ids[start : start + length] for start, length in zip(starts, lengths, strict=True)])
    mask = np.concatenate([np.arange(length) >= first for first, length in zip(first_targets, lengths, strict=True)])
    of_documents = np.cumsum([0, *(len(pack) for pack in packs)], dtype=np.int32)
    of_tokens = np.concatenate([[0], np.cumsum(lengths)])[of_documents].astype(np.int32)
    uuids = pa.array([documents.uuids[index] for index in indices], pa.string())
    columns = [
        _list(of_tokens, ids),
        _list(of_tokens, mask),
        _list(of_documents, lengths),
        pa.ListArray.from_arrays(of_documents, uuids),
        pa.array(np.diff(of_tokens)),
        pa.array(np.add.reduceat(lengths - first_targets, of_documents[:-1], dtype=np.int32)),
    ]
    return pa.Table.from_arrays(columns, schema=PACKS)


def _list(offsets: NDArray[np.int32], values: NDArray[Any]) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values))

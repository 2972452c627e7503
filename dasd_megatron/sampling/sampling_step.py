"""Steps that sample: their shards share one engine, which stays full from the first request to the last.

Requests of later shards enter as slots get free. A response is in its shard's journal as soon as it has ended; a shard is written
when its last one has.
"""

from __future__ import annotations

import contextlib
import time
from abc import abstractmethod
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from dasd_megatron.artifacts.journal import NUMBER, Journal, read_journals, remove_journals
from dasd_megatron.sampling.engine_step import EngineStepConfig, EngineStepKind
from dasd_megatron.sampling.engines.engine import Request, Sample
from dasd_megatron.sampling.responses import RESPONSES, response_table
from dasd_megatron.sampling.sampling_progress import OpenWork, SamplingWatch, reported
from dasd_megatron.steps.step import POLL, Claim, Claims, Standing, StepContext
from dasd_megatron.tokenization.tokenizer import ChatTokenizer

E = TypeVar("E", bound=EngineStepConfig)
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class ShardItems(Generic[Item, Result]):
    """What a shard asks an engine for.

    Attributes:
        items: requests, each of which gives a row of the shard's table, in this order.
        rows: rows of the items with these numbers, from their results.
        others: the shard's other tables.
    """

    items: Sequence[Item]
    rows: Callable[[Sequence[int], Sequence[Result]], pa.Table]
    others: Mapping[str, pa.Table] = field(default_factory=dict)


@dataclass(frozen=True)
class SamplingWork(Generic[Item, Result]):
    """A loaded engine, or a pair of them, and what shards ask of it.

    Attributes:
        generate: as Engine.generate.
        tokens_in_flight: as Engine.tokens_in_flight.
        open: the items of a shard.
    """

    generate: Callable[[Iterable[Item | None]], Iterator[list[tuple[int, Result]]]]
    tokens_in_flight: Callable[[], int]
    open: Callable[[int], ShardItems[Item, Result]]


def response_items(
    rows: Sequence[Mapping[str, Any]],
    requests: Sequence[Request],
    tokenizer: ChatTokenizer,
    others: Mapping[str, pa.Table] | None = None,
) -> ShardItems[Request, Sample]:
    """Items whose rows are responses (see response_table)."""

    def table(numbers: Sequence[int], samples: Sequence[Sample]) -> pa.Table:
        return response_table([rows[n] for n in numbers], [requests[n] for n in numbers], samples, tokenizer)

    return ShardItems(requests, table, others or {})


class SamplingStepKind(EngineStepKind[E]):
    """An engine step whose table gets a row for each thing that an engine is asked for."""

    # Of the table.
    schema: ClassVar[pa.Schema] = RESPONSES
    unit = "tokens"

    @abstractmethod
    def load(self, context: StepContext[E]) -> SamplingWork[Any, Any]:
        """Loads the engine, once a process."""

    def watch(self, context: StepContext[E]) -> Callable[[], Standing]:
        """Counts tokens."""
        return SamplingWatch(context.output, self.table, self.shard_count(context))

    def do_shards(self, context: StepContext[E], claims: Claims) -> None:
        """Does shards until none is left."""
        claim = claims.take()
        while claim is None and not claims.exhausted():  # nothing is loaded for nothing
            time.sleep(POLL)
            claim = claims.take()
        if claim is None:
            return
        stream = _ShardStream(self, context, self.load(context), claims)
        with reported(context.output.journals, stream.open_work):
            stream.run(claim)


@dataclass(eq=False)
class _OpenShard(Generic[Item, Result]):
    """A shard of which something is missing.

    Attributes:
        parts: rows so far, with their numbers.
        left: numbers of the items without a row.
        tokens: of the rows.
    """

    claim: Claim
    content: ShardItems[Item, Result]
    journal: Journal
    parts: list[pa.Table]
    left: set[int]
    tokens: int = 0

    def add(self, rows: pa.Table) -> None:
        """Rows with their numbers, which may be there already."""
        self.parts.append(rows)
        self.left.difference_update(rows[NUMBER].to_pylist())
        self.tokens += pc.sum(rows["tokens"]).as_py() or 0


class _ShardStream(Generic[Item, Result]):
    """One process's shards on their way through its engine."""

    def __init__(
        self,
        kind: SamplingStepKind[Any],
        context: StepContext[Any],
        work: SamplingWork[Item, Result],
        claims: Claims,
    ) -> None:
        self._kind, self._context, self._work, self._claims = kind, context, work, claims
        self._waiting: deque[tuple[_OpenShard[Item, Result], int]] = deque()
        # By the number that the engine knows an item by: its shard, and its number there.
        self._asked: dict[int, tuple[_OpenShard[Item, Result], int]] = {}
        self._count = 0
        self._shards: list[_OpenShard[Item, Result]] = []

    def run(self, first: Claim) -> None:
        """Does that shard and all others that can be had."""
        self._open(first)
        for ended in self._work.generate(self._items()):
            by_shard: dict[_OpenShard[Item, Result], list[tuple[int, Result]]] = defaultdict(list)
            for number, result in ended:
                shard, own = self._asked.pop(number)
                by_shard[shard].append((own, result))
            for shard, results in by_shard.items():
                self._take(shard, results)

    def open_work(self) -> OpenWork:
        """What is open at the moment; for another thread."""
        shards = {}
        for shard in list(self._shards):
            responses = len(shard.content.items)
            shards[shard.claim.shard] = responses, responses - len(shard.left), shard.tokens
        return OpenWork(shards, self._work.tokens_in_flight())

    def _items(self) -> Iterator[Item | None]:
        """What the engine is to do next; None while there is nothing but what it's at."""
        paused = True
        while True:
            if self._waiting:
                shard, number = self._waiting.popleft()
                self._asked[self._count] = shard, number
                self._count += 1
                paused = False
                yield shard.content.items[number]
            elif self._asked and not paused:  # one shard a step of the engine, so that all processes get some
                paused = True
                yield None
            elif (claim := self._claims.take()) is not None:
                self._open(claim)
            elif self._claims.exhausted():
                return
            elif self._asked:
                yield None
            else:
                time.sleep(POLL)

    def _open(self, claim: Claim) -> None:
        """Puts in line what the shard's journals don't have."""
        content, folder = self._work.open(claim.shard), self._context.output.journals
        journal = Journal(folder, claim.shard, self._kind.schema)
        shard = _OpenShard(claim, content, journal, [], set(range(len(content.items))))
        for rows in read_journals(folder, claim.shard, self._kind.schema):
            shard.add(rows)
        self._shards.append(shard)
        self._waiting.extend((shard, number) for number in sorted(shard.left))
        if not shard.left:
            self._write(shard)

    def _take(self, shard: _OpenShard[Item, Result], results: Sequence[tuple[int, Result]]) -> None:
        """Keeps what has ended."""
        numbers = [number for number, _ in results]
        rows = shard.content.rows(numbers, [result for _, result in results])
        shard.add(shard.journal.append(numbers, rows))
        if not shard.left:
            self._write(shard)

    def _write(self, shard: _OpenShard[Item, Result]) -> None:
        kind, output, number = self._kind, self._context.output, shard.claim.shard
        with contextlib.closing(shard.claim):
            with output.shard(number, kind.table, kind.group_bytes) as writer:
                writer.write({**shard.content.others, kind.table: _in_order(shard.parts, kind.schema)})
                held = shard.claim.is_held()
                if not held:  # whoever took it over writes it
                    writer.discard()
            shard.journal.close()
            if held:
                remove_journals(output.journals, number)
        self._shards.remove(shard)


def _in_order(parts: Sequence[pa.Table], schema: pa.Schema) -> pa.Table:
    """Rows by their numbers, each once."""
    rows = pa.concat_tables([schema.append(pa.field(NUMBER, pa.int32())).empty_table(), *parts]).combine_chunks()
    order = pc.sort_indices(rows[NUMBER])
    numbers = rows[NUMBER].take(order).to_numpy()
    first = [place for place in range(len(numbers)) if place == 0 or numbers[place] != numbers[place - 1]]
    return rows.take(order.take(pa.array(first, pa.int64()))).select(schema.names)

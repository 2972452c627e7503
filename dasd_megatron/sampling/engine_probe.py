"""Step `probe`: how fast an engine is when it's full, and whether it takes the longest sequence that the recipe may ask for.

A shard is one engine's part, and there are as many shards as engines, so that they run side by side as in the run itself.
Speed is measured from the first request until the last one is taken: as long as there are any, an engine is full.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from dasd_megatron.artifacts.columns import lists
from dasd_megatron.config.base import Positive
from dasd_megatron.config.models import ModelConfig
from dasd_megatron.config.sampling import EngineRole
from dasd_megatron.sampling.engine_step import EngineStepConfig, EngineStepKind, EngineWork, open_engine
from dasd_megatron.sampling.engines.engine import Engine, Request
from dasd_megatron.sampling.seeds import sample_seed
from dasd_megatron.steps.cost_estimate import Documents, InputEstimates
from dasd_megatron.steps.step import ShardByShardKind, ShardWork, StepContext
from dasd_megatron.tokenization.tokenizer import ChatTokenizer, open_tokenizer
from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.out_of_memory import memory_or_error

# Longest responses while the speed is measured: enough for it, and minutes at most.
RESPONSE_TOKENS = 512
# As a multiple of engine.max_batch: the second half enters as the first one ends.
REQUESTS = 2
# Tokens that are scored to measure the speed, at most.
SCORED_TOKENS = 1 << 17
# Tokens of each sequence by which decoding at the run's lengths is measured.
TYPICAL_TOKENS = 64
# Tokens of the response to the longest prompt.
LAST_TOKENS = 16
PROBES = pa.schema(
    [
        ("load_seconds", pa.float64()),  # until the engine takes requests
        ("work_seconds", pa.float64()),  # of everything after that
        ("decoded_seconds", pa.float64()),  # while the engine was full; 0 where the model only scores
        ("decoded_tokens", pa.int64()),  # meanwhile
        ("typical_seconds", pa.float64()),  # the same at the lengths of the run; 0 where they aren't known
        ("typical_tokens", pa.int64()),
        ("prompt_tokens", pa.float64()),  # mean
        ("response_tokens", pa.float64()),  # mean
        ("scored_seconds", pa.float64()),
        ("scored_tokens", pa.int64()),
        ("scored_sequences", pa.int64()),
        ("longest", pa.int64()),  # tokens of the longest sequence, which was taken
        ("host_memory_gib", pa.float64()),  # of the engine's processes
    ]
)


class ProbeConfig(EngineStepConfig):
    """Config of a step `probe`.

    Attributes:
        engines: side by side.
        longest: tokens of a prompt and its response that the run may ask the model for.
        typical: mean tokens of a sequence while the run decodes it, and how many of them an engine has room for.
        scores: whether the run has it score, too.
        setting: see `rehearsal.setting` in the recipe.
    """

    role: EngineRole
    model: ModelConfig
    engines: Positive
    longest: Positive
    typical: tuple[Positive, Positive] | None
    scores: bool
    setting: str
    seed: int


class ProbeStep(ShardByShardKind[ProbeConfig], EngineStepKind[ProbeConfig]):
    """Reads `prompts` and, where the model is the scorer, the `responses` to score; runs `model`."""

    name = "probe"
    table = "probes"

    def shard_count(self, context: StepContext[ProbeConfig]) -> int:
        """One for each engine."""
        return context.config.engines

    def open(self, context: StepContext[ProbeConfig]) -> ShardWork:
        """Loads the engine; then one row for each shard."""
        start = time.monotonic()
        engine = open_engine(context)
        loaded = time.monotonic() - start
        texts = [] if context.config.role == "scorer" else _texts(context)

        def probe(shard: int) -> Iterator[Mapping[str, pa.Table]]:
            leaner = f"lower engine.{context.config.role}.max_batch or gpu_memory_utilization, or raise tensor_parallel"
            with memory_or_error(f"{context.name}: the engine", leaner):
                yield {self.table: pa.Table.from_pylist([row(shard)], PROBES)}

        def row(shard: int) -> dict[str, Any]:
            start = time.monotonic()
            decoded = (
                Decoded()
                if not texts
                else decode_while_full(engine, list(_requests(context, texts, engine.max_length, shard)))
            )
            sequences = decoded.sequences
            if "responses" in context.inputs:
                sequences = list(_documents(context, engine.max_length))
            began = time.monotonic()
            if context.config.scores:
                engine.score(sequences)
            seconds = time.monotonic() - began
            typical_seconds, typical_tokens = _decode_typical(engine, context, sequences)
            longest = _take_longest(engine, context, sequences)
            return {
                "load_seconds": loaded,
                "work_seconds": time.monotonic() - start,
                "decoded_seconds": decoded.seconds,
                "decoded_tokens": decoded.tokens,
                "typical_seconds": typical_seconds,
                "typical_tokens": typical_tokens,
                "prompt_tokens": decoded.prompt_tokens,
                "response_tokens": decoded.response_tokens,
                "scored_seconds": seconds,
                "scored_tokens": sum(map(len, sequences)) if context.config.scores else 0,
                "scored_sequences": len(sequences) if context.config.scores else 0,
                "longest": longest,
                "host_memory_gib": _resident_gib(),
            }

        return probe

    def summarize(self, context: StepContext[ProbeConfig]) -> dict[str, Any]:
        """The means of the engines, which share a machine as in the run."""
        rows = pa.concat_tables(context.output.tables(self.table))
        means = {name: float(np.mean(rows[name].to_numpy())) for name in rows.column_names}
        return {"counts": {"engines": len(rows)}, "role": context.config.role, "probe": means}

    def work(self, config: ProbeConfig, inputs: InputEstimates) -> EngineWork:
        """Not estimated: a rehearsal's own costs aren't."""
        return EngineWork()

    def documents(self, config: ProbeConfig, inputs: InputEstimates) -> Documents:
        """None that others read."""
        return Documents(0, 0, 0, 0)

    def shards(self, config: ProbeConfig, inputs: InputEstimates) -> int:
        """One for each engine."""
        return config.engines


@dataclass
class Decoded:
    """What an engine decoded.

    Attributes:
        seconds, tokens: while it was full.
        prompt_tokens, response_tokens: mean lengths.
        sequences: some prompts with their responses.
    """

    seconds: float = 0.0
    tokens: int = 0
    prompt_tokens: float = 0.0
    response_tokens: float = 0.0
    sequences: Sequence[Sequence[int]] = ()


def _texts(context: StepContext[ProbeConfig]) -> list[str]:
    texts: list[str] = context.artifact("prompts").read("prompts", ["input"])["input"].to_pylist()
    return texts


def _requests(
    context: StepContext[ProbeConfig], texts: Sequence[str], max_length: int, shard: int
) -> Iterator[Request]:
    """The prompts, again and again, with other seeds."""
    config = context.config
    tokenizer = open_tokenizer(context.inputs["model"], config.model)
    prompts = [tokenizer.prompt_ids(text) for text in texts]
    room = max(1, len(config.engine.server.endpoints)) * config.engine.max_batch
    most = min(RESPONSE_TOKENS, config.longest, max_length)
    for number, prompt_ids in enumerate(islice(cycle(prompts), REQUESTS * room)):
        yield _request(config, tokenizer, prompt_ids, most, f"{shard}-{number}")


def _request(config: ProbeConfig, tokenizer: ChatTokenizer, prompt_ids: list[int], most: int, name: str) -> Request:
    seed = sample_seed(config.seed, "probe", name)
    return Request(prompt_ids, seed, most, 1.0, 1.0, tokenizer.stop_ids)


def decode_while_full(engine: Engine, asked: Sequence[Request]) -> Decoded:
    """Responses to all requests, measured until the last one is taken; more requests than the engine decodes together.

    Of an engine that takes all of them before it decodes, as the reference does, all is measured.
    """
    taken, start, end, in_flight = 0, 0.0, 0.0, 0

    def taking() -> Iterator[Request]:
        nonlocal taken, start, end, in_flight
        for request in asked:
            start = start or time.monotonic()
            taken += 1
            if taken == len(asked):
                end, in_flight = time.monotonic(), engine.tokens_in_flight()
            yield request

    before, lengths, sequences = 0, [], []
    for ended in engine.generate(taking()):
        for number, sample in ended:
            lengths.append(len(sample.token_ids))
            if not end:
                before += lengths[-1]
            sequences.append([*asked[number].prompt_ids, *sample.token_ids.tolist()])
    seconds, tokens = end - start, before + in_flight
    if not tokens:
        seconds, tokens = time.monotonic() - start, sum(lengths)
    return Decoded(
        seconds=seconds,
        tokens=tokens,
        prompt_tokens=float(np.mean([len(request.prompt_ids) for request in asked])),
        response_tokens=float(np.mean(lengths)),
        sequences=list(_until_enough(sequences)),
    )


def _documents(context: StepContext[ProbeConfig], max_length: int) -> Iterator[list[int]]:
    """Responses with their prompts, again and again."""
    rows = context.artifact("responses").read("responses", ["student_prompt_ids", "student_token_ids"])
    pairs = list(zip(lists(rows, "student_prompt_ids"), lists(rows, "student_token_ids"), strict=True))
    if not pairs:
        raise UserError(f"{context.name}: no response passed the filters, so there is nothing to score")
    documents = [np.concatenate(pair)[: max_length - 1].tolist() for pair in pairs]
    yield from _until_enough(islice(cycle(documents), REQUESTS * context.config.engine.max_batch))


def _until_enough(sequences: Any) -> Iterator[list[int]]:
    """As many as have SCORED_TOKENS tokens, and one at least."""
    tokens = 0
    for sequence in sequences:
        if len(sequence) > 1:
            yield sequence
            tokens += len(sequence)
        if tokens >= SCORED_TOKENS:
            return


def _decode_typical(
    engine: Engine, context: StepContext[ProbeConfig], sequences: Sequence[Sequence[int]]
) -> tuple[float, int]:
    """Seconds, and tokens that are decoded in them, with the engine full of sequences as long as the run's.

    The same prompts three times: once, so that an engine that keeps them has them all; then the difference of twice as many
    tokens is decoding alone, whether it does or not.
    """
    config = context.config
    if config.typical is None or config.role == "scorer":
        return 0.0, 0
    length, count = config.typical
    length = min(length, engine.max_length - 2 * TYPICAL_TOKENS - 1)
    seen = [token for sequence in sequences for token in sequence]
    prompts = [list(islice(cycle(seen), number, number + length)) for number in range(count)]
    seconds = []
    for tokens in (1, TYPICAL_TOKENS, 2 * TYPICAL_TOKENS):
        start = time.monotonic()
        requests = [Request(ids, number, tokens, 1.0, 1.0, ()) for number, ids in enumerate(prompts)]
        made = sum(len(sample.token_ids) for ended in engine.generate(iter(requests)) for _, sample in ended)
        seconds.append(time.monotonic() - start)
    return max(seconds[2] - seconds[1], 1e-9), made // 2


def _take_longest(engine: Engine, context: StepContext[ProbeConfig], sequences: Sequence[Sequence[int]]) -> int:
    """Asks for a sequence as long as the recipe may, of tokens that the model has seen. Returns its length.

    Raises UserError where the engine doesn't go on with it.
    """
    config = context.config
    longest = min(config.longest, engine.max_length)
    ids = list(islice(cycle([token for sequence in sequences for token in sequence]), longest - 1))
    if config.role == "scorer":
        engine.score([ids])
        return len(ids)
    tokenizer = open_tokenizer(context.inputs["model"], config.model)
    request = _request(config, tokenizer, ids[: max(1, longest - LAST_TOKENS)], LAST_TOKENS, "longest")
    ((_, sample),) = (pair for ended in engine.generate(iter([request])) for pair in ended)
    if not len(sample.token_ids):
        raise UserError(f"{context.name}: the engine doesn't go on after {len(request.prompt_ids):,} tokens")
    return len(request.prompt_ids) + len(sample.token_ids)


def _resident_gib() -> float:
    """Of this process and those that it started."""
    own = psutil.Process()
    return sum(process.memory_info().rss for process in [own, *own.children(recursive=True)]) / 2**30

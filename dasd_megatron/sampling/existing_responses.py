"""Step `responses`: responses that exist already, in the form of sampled ones."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dasd_megatron.artifacts.columns import lists
from dasd_megatron.config.base import Count, ExecutionOnly, Positive, Temperature
from dasd_megatron.config.gpu_specs import GpuName
from dasd_megatron.config.models import ModelConfig
from dasd_megatron.config.responses import ResponseSource
from dasd_megatron.sampling.asked_prompts import asked_prompts
from dasd_megatron.sampling.data_sets import BadRow, Rows
from dasd_megatron.sampling.engines.engine import Request, Sample
from dasd_megatron.sampling.response_prompts import ROWS, response_columns
from dasd_megatron.sampling.responses import count_responses, response_table
from dasd_megatron.sampling.sample import sampled_cost
from dasd_megatron.steps.cost_estimate import Cost, Documents, InputEstimates, responses_of
from dasd_megatron.steps.step import Replicas, ShardByShardKind, ShardWork, StepConfig, StepContext
from dasd_megatron.tokenization.missing_markup import with_markup
from dasd_megatron.tokenization.response_format import response_format
from dasd_megatron.tokenization.tokenizer import ChatTokenizer, open_tokenizer
from dasd_megatron.utils.errors import UserError

DROPPED = pa.schema(
    [
        ("place", pa.string()),
        ("reason", pa.string()),
        ("input", pa.string()),
        ("text", pa.string()),
        ("spelled", pa.string()),  # by the token ids, where that is another text
    ]
)
# Why a row is dropped whatever `bad_rows` says.
DIFFER = "ids_and_text_differ"
# Responses that are in memory at a time, and those that one more process is worth.
BATCH, OF_A_PROCESS = 32, 500
# Of a log-probability: rounding may leave it a little above 0.
ABOVE = 1e-3


class ResponsesConfig(StepConfig):
    """Config of a step `responses`."""

    model: ModelConfig
    source: ResponseSource
    # Of `source` in the recipe, for messages.
    key: ExecutionOnly[str]
    temperature: Temperature
    limit: Count | None
    # For the table alone: under which cap they were sampled isn't known.
    max_tokens: Positive
    prompts_per_shard: Positive
    # For a dry run: mean length of a response. None: what the recipe expects of all.
    expected_response_tokens: ExecutionOnly[Positive | None] = None


class ResponsesStep(ShardByShardKind[ResponsesConfig]):
    """Reads `prompts` (of a step `response_prompts`) and the rows of `source` and `logprobs`, and knows the tokenizer of `model`.

    A shard is `prompts_per_shard` prompts.
    """

    name = "responses"
    command = "generate"
    # On one core (benchmarks/curation.py).
    tokens_per_second: ClassVar[float] = 4e6

    def processes(self, config: ResponsesConfig) -> Replicas:
        """One for each core."""
        return Replicas(count=None, gpus_each=0)

    def useful_processes(self, context: StepContext[ResponsesConfig]) -> int:
        """By how many responses there are."""
        count: int = context.artifact("prompts").manifest["counts"]["responses"]
        return math.ceil(count / OF_A_PROCESS)

    def shard_count(self, context: StepContext[ResponsesConfig]) -> int:
        """Shards of the prompts that are asked for."""
        return math.ceil(len(asked_prompts(context, context.config.limit)) / context.config.prompts_per_shard)

    def open(self, context: StepContext[ResponsesConfig]) -> ShardWork:
        """Opens the rows; reads a shard's."""
        reader, size = _ResponseReader(context), context.config.prompts_per_shard
        prompts = asked_prompts(context, context.config.limit)

        def work(shard: int) -> Iterator[Mapping[str, pa.Table]]:
            yield from reader.tables(prompts[shard * size : (shard + 1) * size])

        return work

    def summarize(self, context: StepContext[ResponsesConfig]) -> dict[str, Any]:
        """Responses, tokens, and how many were dropped, by reason."""
        facts, reasons = count_responses(context.output, self.table), Counter[str]()
        for table in context.output.tables("dropped", ["reason"]):
            reasons.update(table["reason"].to_pylist())
        if not facts["counts"]["responses"]:
            raise UserError(
                f"{context.name}: not one response is usable (dropped: {dict(reasons)}); see the reasons in "
                f"{context.output.path}/dropped-*.parquet, and check teacher.model and teacher.response_format"
            )
        if reasons:
            counted = ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common())
            print(f"{context.name}: dropped: {counted} (see {context.output.path}/dropped-*.parquet)", file=sys.stderr)
        return {**facts, "dropped": dict(reasons)}

    def documents(self, config: ResponsesConfig, inputs: InputEstimates) -> Documents:
        """One response to each prompt."""
        prompts = inputs.prompts("prompts")
        if config.limit is not None:
            wanted = sum(config.limit.values()) if isinstance(config.limit, dict) else config.limit
            prompts = min(prompts, float(wanted))
        made = responses_of(prompts, prompts, config.max_tokens, inputs.expected)
        return replace(made, response=config.expected_response_tokens or made.response)

    def shards(self, config: ResponsesConfig, inputs: InputEstimates) -> int:
        """Shards of the prompts that are asked for."""
        return math.ceil(inputs.own_documents().prompts / config.prompts_per_shard)

    def cost(self, config: ResponsesConfig, inputs: InputEstimates) -> Cost:
        """As of sampled ones, but that no token is new."""
        return replace(sampled_cost(inputs.own_documents()), samples=False)

    def hours(self, config: ResponsesConfig, inputs: InputEstimates, gpu: GpuName | None, processes: int) -> float:
        """By their tokens, shared out among the processes that get a shard."""
        tokens = inputs.own_documents().tokens
        return tokens / (self.tokens_per_second * min(processes, inputs.own_shards())) / 3600


class _ResponseReader:
    """Puts rows into the form of sampled responses."""

    def __init__(self, context: StepContext[ResponsesConfig]) -> None:
        self._config, source = context.config, context.config.source
        self._responses = Rows(source, context.inputs.get("source"))
        self._columns = response_columns(self._responses, source, context.config.key)
        self._logprobs, self._logprob_columns = self._responses, self._columns
        if source.logprobs is not None:
            self._logprobs = Rows(source.logprobs, context.inputs.get("logprobs"))
            self._logprob_columns = self._logprobs.check_columns(
                f"{context.config.key}.logprobs", source.logprobs.columns.model_dump()
            )
        self._tokenizer: ChatTokenizer = open_tokenizer(context.inputs["model"], context.config.model)
        self._format = response_format(context.config.model.response_format, self._tokenizer)
        self._prompt_ids = lru_cache(maxsize=1)(self._tokenizer.prompt_ids)
        prompts = context.artifact("prompts")
        self._numbers = {row["uuid"]: number for number, row in enumerate(prompts.rows("prompts", ["uuid"]))}
        rows = prompts.read("rows")
        self._of, self._text_row, self._logprobs_row = (rows[name].to_numpy() for name in ROWS.names)

    def tables(self, prompts: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, pa.Table]]:
        """The prompts' responses, and those that are dropped, a few at a time."""
        waiting: list[tuple[Mapping[str, Any], int, int]] = []
        for prompt in prompts:
            first, last = np.searchsorted(self._of, [self._numbers[prompt["uuid"]], self._numbers[prompt["uuid"]] + 1])
            waiting += [(prompt, place, place - int(first)) for place in range(int(first), int(last))]
        for start in range(0, len(waiting), BATCH):
            yield self._read(waiting[start : start + BATCH])

    def _read(self, wanted: Sequence[tuple[Mapping[str, Any], int, int]]) -> Mapping[str, pa.Table]:
        """`wanted`: of each its prompt, its place in `rows`, and its number among the prompt's."""
        texts: list[str | None] = [None] * len(wanted)
        numbers = [int(self._text_row[place]) for _, place, _ in wanted]
        if "output" in self._columns:
            texts = self._responses.read(numbers, [self._columns["output"]])[0].to_pylist()
        columns = [self._logprob_columns[name] for name in ("token_ids", "logprobs")]
        places = [int(self._logprobs_row[place]) for _, place, _ in wanted]
        found = self._logprobs.read(places, columns)
        ids, logprobs = (_numbers(found, column) for column in columns)
        rows, requests, samples, dropped = [], [], [], []
        for (prompt, _, index), number, of_logprobs, text, own, probabilities in zip(
            wanted, numbers, places, texts, ids, logprobs, strict=True
        ):
            prompt_ids = self._prompt_ids(prompt["input"])
            try:
                samples.append(self._sample(prompt_ids, own, probabilities, text))
            except BadRow as bad:
                spelled, place = None, self._logprobs.place(of_logprobs)
                if bad.reason == DIFFER and own is not None:
                    place = self._responses.place(number)
                    spelled = self._tokenizer.decode_bytes(own.astype(np.int32)).decode(errors="replace")
                elif self._config.source.bad_rows == "error":
                    raise bad.refusal(place, self._config.key) from None
                row = {"place": place, "reason": bad.reason, "input": prompt["input"], "text": text}
                dropped.append({**row, "spelled": spelled})
                continue
            rows.append({**prompt, "sample_index": index, "temperature": self._config.temperature})
            requests.append(Request(prompt_ids, 0, self._config.max_tokens, self._config.temperature, 1.0, []))
        return {
            "dropped": pa.Table.from_pylist(dropped, DROPPED),
            "responses": response_table(rows, requests, samples, self._tokenizer),
        }

    def _sample(
        self, prompt_ids: list[int], ids: NDArray[Any] | None, logprobs: NDArray[Any] | None, text: str | None
    ) -> Sample:
        """Raises BadRow."""
        if ids is None or logprobs is None or not len(ids):
            raise BadRow("no_token_ids", "it has no token ids, or no log-probabilities")
        if len(ids) != len(logprobs):
            raise BadRow("other_length", f"it has {len(ids)} token ids and {len(logprobs)} log-probabilities")
        if ids.dtype.kind not in "iuf" or (ids != np.floor(ids)).any():
            raise BadRow("bad_token_ids", "its token ids aren't whole numbers")
        unknown = ids[(ids < 0) | (ids >= len(self._tokenizer.token_bytes))]
        if len(unknown):
            raise BadRow("unknown_token", f"token id {unknown[0]} is beyond the vocabulary of {self._tokenizer.folder}")
        if logprobs.dtype.kind not in "iuf" or not (np.isfinite(logprobs).all() and (logprobs <= ABOVE).all()):
            raise BadRow("bad_logprobs", "a log-probability is above 0, or no number")
        whole = with_markup(
            self._format, self._tokenizer, prompt_ids, ids.astype(np.int32), logprobs.astype(np.float32), text
        )
        if whole is None:
            raise BadRow(DIFFER, "its token ids spell another text")
        return Sample(whole.token_ids, whole.logprobs, whole.finish_reason)


def _numbers(table: pa.Table, column: str) -> list[NDArray[Any] | None]:
    """Each row of a column of lists of numbers; None where it has none."""
    if not pa.types.is_list(table.schema.field(column).type) and not pa.types.is_large_list(
        table.schema.field(column).type
    ):
        return [None] * len(table)
    valid = table[column].is_valid().to_pylist()
    return [found if there else None for there, found in zip(valid, lists(table, column), strict=True)]

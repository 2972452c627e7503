"""Step `response_prompts`: the problems of responses that exist already, and which rows answer each of them."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from dasd_megatron.config.prompts import PromptColumns
from dasd_megatron.config.responses import ResponseSource
from dasd_megatron.sampling.data_sets import BadRow, Rows
from dasd_megatron.sampling.prompts import (
    DROPPED,
    PROMPTS,
    LearningCheck,
    ProblemsConfig,
    check_answers,
    check_domains,
    prompt_row,
)
from dasd_megatron.steps.cost_estimate import TEXT, Cost, InputEstimates, Unknown
from dasd_megatron.steps.step import StepContext, StepKind
from dasd_megatron.utils.errors import UserError

# A prompt's responses, one prompt after another: numbers of the prompt, and of the rows that have text and log-probabilities.
ROWS = pa.schema([("prompt", pa.int32()), ("text_row", pa.int64()), ("logprobs_row", pa.int64())])


class ResponsePromptsConfig(ProblemsConfig):
    """Config of a step `response_prompts`."""

    source: ResponseSource


class ResponsePromptsStep(StepKind[ResponsePromptsConfig]):
    """Reads `source`'s problems and uuids, and the uuids of `logprobs`; nothing else of them. Problems are checked as those of a
    step `prompts` are."""

    name = "response_prompts"
    command = "generate"

    def run(self, context: StepContext[ResponsePromptsConfig]) -> dict[str, Any]:
        """Writes the tables `prompts`, `rows` and `dropped`."""
        config, found = context.config, _Problems(context)
        found.read()
        if not found.prompts:
            raise UserError(f"{config.source.name}: no usable response in it (dropped: {found.reasons()})")
        prompts = list(found.prompts.values())
        check_answers(prompts, config)
        check_domains(prompts, config)
        rows = pa.Table.from_pylist(found.rows, ROWS).sort_by("prompt")  # stable
        context.output.write_shard("dropped", 0, pa.Table.from_pylist(found.dropped, DROPPED))
        context.output.write_shard("rows", 0, rows)
        context.output.write_shard("prompts", 0, pa.Table.from_pylist(prompts, PROMPTS))
        reasons = found.reasons()
        counted = ", ".join(f"{reason} {count:,}" for reason, count in reasons.items()) or "none"
        print(
            f"{context.name}: {len(rows):,} responses to {len(prompts):,} prompts; dropped: {counted}", file=sys.stderr
        )
        return {"counts": {"prompts": len(prompts), "responses": len(rows)}, "dropped": reasons}

    def prompts(self, config: ResponsePromptsConfig, inputs: InputEstimates) -> float:
        """The limit, as if each response were to a prompt of its own."""
        if config.source.limit is None:
            raise Unknown(f"how many responses there are: set {config.key}.limit")
        return float(config.source.limit)

    def cost(self, config: ResponsePromptsConfig, inputs: InputEstimates) -> Cost:
        """Text of the problems."""
        prompts = inputs.own_prompts()
        tokens = prompts * inputs.expected.prompt_tokens
        return Cost(prompts, "prompts", tokens_out=tokens, bytes=tokens * TEXT)


class _Problems:
    """What is found on the way through the rows.

    Attributes:
        prompts: by their text.
        rows: see ROWS.
        dropped: see DROPPED.
    """

    def __init__(self, context: StepContext[ResponsePromptsConfig]) -> None:
        self._config, self._source = context.config, context.config.source
        self._responses = Rows(self._source, context.inputs.get("source"))
        self._columns = response_columns(self._responses, self._source, self._config.key)
        self._check = LearningCheck(context)
        self._unfit: dict[str, tuple[str, str]] = {}
        self._seen: dict[str, str] = {}
        self._numbers: dict[str, int] = {}
        self.prompts: dict[str, dict[str, str | None]] = {}
        self.rows: list[dict[str, int]] = []
        self.dropped: list[dict[str, str]] = []
        self._logprobs = self._logprob_rows(context)

    def read(self) -> None:
        """Takes all rows up to the limit. Raises UserError for a bad one, unless such are dropped."""
        wanted = [name for setting, name in self._columns.items() if setting in ("uuid", "input", "domain", "answer")]
        number = 0
        for batch in self._responses.batches(wanted):
            for raw in batch.to_pylist():
                if number == self._source.limit:
                    return
                self._take(number, raw)
                number += 1

    def reasons(self) -> dict[str, int]:
        """Dropped rows by reason."""
        return dict(Counter(row["reason"] for row in self.dropped))

    def _take(self, number: int, raw: Mapping[str, Any]) -> None:
        place = self._responses.place(number)
        try:
            prompt, logprobs_row = self._prompt(raw), self._logprobs_row(number, raw, place)
        except BadRow as bad:
            if self._source.bad_rows == "error":
                raise bad.refusal(place, self._config.key) from None
            content = json.dumps(raw, default=str)
            self.dropped.append({"place": place, "reason": bad.reason, "content": content})
            return
        text = str(prompt["input"])
        if text not in self._numbers and text not in self._unfit:
            unfit = self._check.reason(text, place)
            if unfit is not None:
                self._unfit[text] = unfit
        if text in self._unfit:
            reason, match = self._unfit[text]
            self.dropped.append({"place": place, "reason": reason, "content": text, "match": match})
            return
        self.prompts.setdefault(text, prompt)
        of = self._numbers.setdefault(text, len(self._numbers))
        self.rows.append({"prompt": of, "text_row": number, "logprobs_row": logprobs_row})

    def _logprob_rows(self, context: StepContext[ResponsePromptsConfig]) -> dict[str, int] | None:
        """Rows of log-probabilities by uuid, the first of each; None where they are in the responses' own. Raises UserError."""
        source = self._source.logprobs
        if source is None:
            return None
        rows, key = Rows(source, context.inputs.get("logprobs")), f"{self._config.key}.logprobs"
        column = rows.check_columns(key, source.columns.model_dump())["uuid"]
        numbers: dict[str, int] = {}
        uuids = (str(uuid) for batch in rows.batches([column]) for uuid in batch[column].to_pylist())
        for number, uuid in enumerate(uuids):
            first = numbers.setdefault(uuid, number)
            if first == number:
                continue
            bad = BadRow("duplicate_uuid", f"uuid {uuid!r} stands at {rows.place(first)} already")
            if self._source.bad_rows == "error":
                raise bad.refusal(rows.place(number), self._config.key)
            self.dropped.append({"place": rows.place(number), "reason": bad.reason, "content": uuid})
        return numbers

    def _prompt(self, raw: Mapping[str, Any]) -> dict[str, str | None]:
        columns = {name: self._columns.get(name) for name in ("domain", "answer")}
        named = PromptColumns(uuid=None, input=self._columns["input"], **columns)
        return prompt_row(raw, named, self._config.key)

    def _logprobs_row(self, number: int, raw: Mapping[str, Any], place: str) -> int:
        """Of its log-probabilities. Raises BadRow where there are none, and for a uuid that came before."""
        column = self._columns.get("uuid")
        uuid = None if column is None or raw[column] is None else str(raw[column])
        if uuid is not None and self._seen.setdefault(uuid, place) != place:
            raise BadRow("duplicate_uuid", f"uuid {uuid!r} stands at {self._seen[uuid]} already")
        if self._logprobs is None:
            return number
        if uuid is None:
            raise BadRow("no_uuid", "there is no uuid to find its log-probabilities by")
        found = self._logprobs.get(uuid)
        if found is None:
            raise BadRow("no_logprobs", f"uuid {uuid!r} has no row in {self._config.key}.logprobs")
        return found


def response_columns(rows: Rows, source: ResponseSource, key: str) -> dict[str, str]:
    """Of the responses' rows: setting -> column, those that are there. Raises UserError for one that is missing."""
    names = source.columns.model_dump()
    if source.logprobs is not None:
        del names["token_ids"], names["logprobs"]
    optional = ["domain", "answer", *(["uuid"] if source.logprobs is None else [])]
    return rows.check_columns(key, names, optional)

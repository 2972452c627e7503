"""Step `prompts`: problems from JSONL, Parquet or a `datasets` name, as rows `uuid, input, domain, answer`."""

from __future__ import annotations

import json
import re
import sys
import uuid as uuid_module
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from pydantic import Field

from dasd_megatron.artifacts.artifact import shard_name
from dasd_megatron.config.base import ExecutionOnly
from dasd_megatron.config.prompts import PromptColumns, PromptSource
from dasd_megatron.sampling.data_sets import BadRow, json_mapping, raw_rows
from dasd_megatron.sampling.decontamination import HeldOutProblems, normalized
from dasd_megatron.steps.cost_estimate import TEXT, Cost, InputEstimates, Unknown
from dasd_megatron.steps.step import StepConfig, StepContext, StepKind
from dasd_megatron.tokenization.control_tokens import control_tokens
from dasd_megatron.utils.errors import UserError

PROMPTS = pa.schema([("uuid", pa.string()), ("input", pa.string()), ("domain", pa.string()), ("answer", pa.string())])
DROPPED = pa.schema(
    [
        ("place", pa.string()),
        ("reason", pa.string()),
        ("content", pa.string()),
        ("match", pa.string()),  # what it repeats, shares or holds
    ]
)


class ProblemsConfig(StepConfig):
    """What is asked of problems as a whole."""

    # Of their source in the recipe, for messages.
    key: ExecutionOnly[str] = "prompts.train"
    # Settings that ask for something of the problems as a whole; each is a name for messages.
    answers_wanted_by: ExecutionOnly[str | None] = None
    budgets: ExecutionOnly[dict[str, list[str]]] = Field(default_factory=dict)  # with the domains that they name


class PromptsStepConfig(ProblemsConfig):
    """Config of a step `prompts`."""

    source: PromptSource


class PromptsStep(StepKind[PromptsStepConfig]):
    """Reads, checks and writes all prompts of `source`. A bad row stops the step with its place, or is dropped and counted.

    Problems to learn from that are, or contain, held-out ones are always dropped (decontamination.py): they would make the
    measures worthless. So are those that repeat one before, and those that spell out a control token of the `teacher` or the
    `student`: it would read the real one.
    """

    name = "prompts"
    command = "generate"

    def run(self, context: StepContext[PromptsStepConfig]) -> dict[str, Any]:
        """Writes the tables `prompts` and `dropped`."""
        source, path = context.config.source, context.inputs.get("source")
        kept: list[dict[str, str | None]] = []
        dropped: list[dict[str, str]] = []
        seen: dict[str, str] = {}
        check = LearningCheck(context)
        for place, raw in raw_rows(path, source):
            if source.limit is not None and len(kept) == source.limit:
                break
            try:
                row = _checked_row(raw, place, seen, context.config)
            except BadRow as bad:
                if source.bad_rows == "error":
                    raise bad.refusal(place, context.config.key) from None
                content = raw if isinstance(raw, str) else json.dumps(raw, default=str)
                dropped.append({"place": place, "reason": bad.reason, "content": content})
                continue
            text = str(row["input"])
            unfit = check.reason(text, place)
            if unfit is not None:  # no mistake in the row, so never an error
                reason, match = unfit
                dropped.append({"place": place, "reason": reason, "content": text, "match": match})
                continue
            seen[str(row["uuid"])] = place
            kept.append(row)
        if not kept:
            raise UserError(f"{path or source.dataset}: no usable prompt in it")
        check_answers(kept, context.config)
        check_domains(kept, context.config)
        context.output.write_shard("dropped", 0, pa.Table.from_pylist(dropped, DROPPED))
        context.output.write_shard("prompts", 0, pa.Table.from_pylist(kept, PROMPTS))
        reasons = dict(Counter(row["reason"] for row in dropped))
        if reasons:
            counted = ", ".join(f"{reason} {count:,}" for reason, count in reasons.items())
            table = context.output.path / shard_name("dropped", 0)
            print(f"{context.name}: {len(kept):,} prompts; dropped: {counted} (see {table})", file=sys.stderr)
        return {"counts": {"prompts": len(kept)}, "dropped": reasons}

    def prompts(self, config: PromptsStepConfig, inputs: InputEstimates) -> float:
        """The limit: how many rows there are isn't known before they are read."""
        if config.source.limit is None:
            raise Unknown(f"how many prompts there are: set {config.key}.limit")
        return float(config.source.limit)

    def cost(self, config: PromptsStepConfig, inputs: InputEstimates) -> Cost:
        """Their text."""
        prompts = inputs.own_prompts()
        tokens = prompts * inputs.expected.prompt_tokens
        return Cost(prompts, "prompts", tokens_out=tokens, bytes=tokens * TEXT)


def _checked_row(
    raw: str | Mapping[str, Any], place: str, seen: Mapping[str, str], config: PromptsStepConfig
) -> dict[str, str | None]:
    """The row as a prompt; `seen`: places by uuid of those before it. Raises BadRow."""
    row = prompt_row(raw, config.source.columns, config.key)
    uuid = str(row["uuid"])
    if uuid in seen:
        raise BadRow("duplicate_uuid", f"uuid {uuid!r} stands at {seen[uuid]} already")
    return row


def check_answers(prompts: Sequence[Mapping[str, str | None]], config: ProblemsConfig) -> None:
    """Says how many there are, where a setting wants them; raises UserError for none."""
    if config.answers_wanted_by is None:
        return
    count = sum(row["answer"] is not None for row in prompts)
    if not count:
        raise UserError(
            f"{config.answers_wanted_by}=true, but none of the {len(prompts):,} problems has a reference answer; name its "
            f"column in {config.key}.columns.answer"
        )
    print(f"{config.key}: {count:,} of {len(prompts):,} problems have a reference answer", file=sys.stderr)


def check_domains(prompts: Sequence[Mapping[str, str | None]], config: ProblemsConfig) -> None:
    """Raises UserError where a budget names a domain that no problem is of: it would be found days later, by `select`."""
    there = Counter(row["domain"] or "none" for row in prompts)
    for budget, domains in config.budgets.items():
        for domain in domains:
            if not there[domain]:
                names = ", ".join(f"{name} {count:,}" for name, count in there.most_common())
                raise UserError(
                    f"{budget}.{domain}: no problem of {config.key} is of that domain (there are: {names}); fix the name"
                )


class LearningCheck:
    """Tells problems that must not be learned from."""

    def __init__(self, context: StepContext[Any]) -> None:
        held_out = [context.artifact(name) for name in context.inputs if name.startswith("held_out_")]
        rows = (row for artifact in held_out for row in artifact.rows("prompts", ["uuid", "statement"]))
        self._held_out = HeldOutProblems((row["uuid"], row["statement"]) for row in rows)
        folders = [context.inputs[name] for name in ("teacher", "student") if name in context.inputs]
        names = dict.fromkeys(token for folder in folders for token in control_tokens(folder))
        self._control_token = re.compile("|".join(map(re.escape, names)) or "(?!)")
        self._places: dict[str, str] = {}

    def reason(self, text: str, place: str) -> tuple[str, str] | None:
        """(reason, what it repeats or holds), or None for a problem that is fit to learn from."""
        if spelled := self._control_token.search(text):
            return "control_token", spelled.group()
        match = self._held_out.match(text)
        if match is not None:
            return ("held_out" if match.whole else "held_out_overlap"), f"{match.uuid}: {match.text}"
        first = self._places.setdefault(normalized(text), place)
        return None if first == place else ("duplicate_input", first)


def prompt_row(raw: str | Mapping[str, Any], columns: PromptColumns, key: str) -> dict[str, str | None]:
    """One prompt from a JSON line or a mapping; `key`: of the source in the recipe. Raises BadRow."""
    raw = json_mapping(raw)
    text = raw.get(columns.input)
    if not isinstance(text, str) or not text.strip():
        wrong = (
            "is missing or empty" if not text or isinstance(text, str) else f"holds a {type(text).__name__}, not text"
        )
        raise BadRow("no_input", f"column {columns.input!r} {wrong}; name the right one in {key}.columns.input")
    values: dict[str, str | None] = {"input": text}
    try:
        json.dumps(raw, ensure_ascii=False, default=str).encode()
    except (UnicodeEncodeError, RecursionError):
        raise BadRow("invalid_unicode", "a text holds half a character (a lone surrogate)") from None
    for name in ("uuid", "domain", "answer"):
        column: str | None = getattr(columns, name)
        value = raw.get(column) if column else None
        if value is not None and not isinstance(value, (str, int, float)):
            raise BadRow(f"bad_{name}", f"column {column!r} holds {type(value).__name__}, not text or a number")
        values[name] = None if value is None else str(value)
    if not values["uuid"]:
        values["uuid"] = str(uuid_module.uuid5(uuid_module.NAMESPACE_OID, text))
    return values

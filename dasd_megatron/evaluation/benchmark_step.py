"""Step `benchmark`: the problems of a benchmark, from the hub or a file, as prompts with references."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from dasd_megatron.artifacts.writer import ShardWriter
from dasd_megatron.config.base import ExecutionOnly
from dasd_megatron.config.benchmarks import BenchmarkConfig
from dasd_megatron.config.sources import DataSource
from dasd_megatron.evaluation.benchmarks.benchmark import Benchmark, Problem
from dasd_megatron.evaluation.benchmarks.registry import declared_benchmark
from dasd_megatron.grading.registry import check_reference
from dasd_megatron.grading.sandbox.sandbox import check_sandbox
from dasd_megatron.sampling.data_sets import BadRow, hub_files, json_mapping, raw_rows
from dasd_megatron.sampling.prompts import PROMPTS
from dasd_megatron.steps.cost_estimate import TEXT, Cost, InputEstimates, Unknown
from dasd_megatron.steps.step import StepConfig, StepContext, StepKind
from dasd_megatron.utils.errors import UserError

# As of a step `prompts`, the reference as `answer`; and the problem's statement without template and choices, and what its
# answer begins with.
PROBLEMS = PROMPTS.append(pa.field("statement", pa.string())).append(pa.field("answer_start", pa.string()))
# Bytes of text that are in memory at a time: tests of programs have megabytes.
_BATCH = 64 * 1024**2
TABLE = "prompts"


class BenchmarkStepConfig(StepConfig):
    """Config of a step `benchmark`."""

    benchmark: BenchmarkConfig
    # Of the benchmark in the recipe, for messages.
    key: ExecutionOnly[str]


class BenchmarkStep(StepKind[BenchmarkStepConfig]):
    """Reads, checks and writes the problems; prints and stores how many there are, their dates, and a hash of their content."""

    name = "benchmark"
    command = "evaluate"

    def run(self, context: StepContext[BenchmarkStepConfig]) -> dict[str, Any]:
        """Writes the table `prompts`."""
        config = context.config.benchmark
        declared = declared_benchmark(config, context.config.key)
        found = _Found(declared, config)
        with context.output.shard(0, TABLE) as shard:
            for place, row in _rows(context, declared):
                if config.limit is not None and found.count == config.limit:
                    break
                found.take(place, row, shard)
            found.write(shard)
        if not found.count:
            raise UserError(f"{config.name}: no problem in {_source(config, declared).name}{found.why_none()}")
        if (config.grader or declared.grader) == "code":
            check_sandbox()  # before hours of answers that couldn't be graded
        facts = {"counts": {"prompts": found.count}, **found.facts()}
        print(f"{context.name}: {_described(facts)}", file=sys.stderr)
        whole = config.limit is None and (config.since, config.until) == (None, None)
        if whole and declared.count is not None and found.count != declared.count:
            print(
                f"warning: {context.name}: {config.name} has {declared.count} problems as it is mostly reported, and there are "
                f"{found.count:,} here; scores don't compare",
                file=sys.stderr,
            )
        return facts

    def prompts(self, config: BenchmarkStepConfig, inputs: InputEstimates) -> float:
        """The limit, or how many the benchmark is known to have."""
        known = declared_benchmark(config.benchmark, config.key).count
        limit = config.benchmark.limit
        if known is None and limit is None:
            raise Unknown(f"how many problems there are: set {config.key}.limit")
        return float(min(count for count in (known, limit) if count is not None))

    def cost(self, config: BenchmarkStepConfig, inputs: InputEstimates) -> Cost:
        """Their text."""
        prompts = inputs.own_prompts()
        tokens = prompts * inputs.expected.prompt_tokens
        return Cost(prompts, "problems", tokens_out=tokens, bytes=tokens * TEXT)


class _Found:
    """The problems so far.

    Attributes:
        count: of those that are taken.
    """

    def __init__(self, declared: Benchmark, config: BenchmarkConfig) -> None:
        self._declared, self._config = declared, config
        self._since, self._until = config.since or declared.since, config.until or declared.until
        self._template = config.template or declared.template
        self._grader = config.grader or declared.grader
        self._places: dict[str, str] = {}
        self._dates: list[str] = []
        self._outside = 0
        self._hash = hashlib.sha256()
        self._waiting: list[dict[str, str | None]] = []
        self._bytes = 0
        self.count = 0

    def take(self, place: str, row: Mapping[str, Any], shard: ShardWriter) -> None:
        """A row of the data. Raises UserError for one that is no problem."""
        missing = [name for name in self._declared.columns if name not in row]
        if missing:
            raise UserError(
                f"{place}: no column {missing[0]!r}, which {self._config.name} has (there are: {', '.join(row)})"
            )
        try:
            problem = self._declared.problem(row)
            check_reference(problem.reference, self._grader)
            wanted = self._is_wanted(problem)
        except (ValueError, UserError) as error:
            raise UserError(f"{place}: {error}") from None
        if not wanted:
            self._outside += 1
            return
        first = self._places.setdefault(problem.uuid, place)
        if first != place:
            raise UserError(f"{place}: the problem {problem.uuid!r} stands at {first} already")
        prompt = self._template.replace("{question}", problem.question)
        start = [problem.answer_start] if problem.answer_start else []
        for text in (problem.uuid, prompt, problem.reference, *start):
            self._hash.update(f"{len(text)}:{text}".encode())
        if problem.date is not None:
            self._dates.append(problem.date.isoformat())
        self._waiting.append(
            {
                "uuid": problem.uuid,
                "input": prompt,
                "domain": problem.domain,
                "answer": problem.reference,
                "statement": problem.statement or problem.question,
                "answer_start": problem.answer_start,
            }
        )
        self.count += 1
        self._bytes += len(prompt) + len(problem.reference)
        if self._bytes > _BATCH:
            self.write(shard)

    def write(self, shard: ShardWriter) -> None:
        """What isn't on disk."""
        shard.write({TABLE: pa.Table.from_pylist(self._waiting, PROBLEMS)})
        self._waiting, self._bytes = [], 0

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        dates = [min(self._dates), max(self._dates)] if self._dates else None
        return {"dates": dates, "outside_dates": self._outside, "sha256": self._hash.hexdigest()}

    def why_none(self) -> str:
        """Where there are none."""
        if not self._outside:
            return ""
        return f": all {self._outside:,} are before {self._since or 'ever'} or after {self._until or 'ever'}"

    def _is_wanted(self, problem: Problem) -> bool:
        """By its date. Raises ValueError where it has none, and one is asked for."""
        if problem.date is None:
            if self._config.since or self._config.until:
                raise ValueError(f"{self._config.name} has no dates: leave out since and until")
            return True
        return (self._since or problem.date) <= problem.date <= (self._until or problem.date)


def _rows(context: StepContext[BenchmarkStepConfig], declared: Benchmark) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows with their places, for messages. Raises UserError."""
    config, path = context.config.benchmark, context.inputs.get("source")
    source = _source(config, declared)
    paths: list[Path | None] = [path]
    if path is not None and path.is_dir():
        names = declared.files or sorted(child.name for child in path.glob("*.jsonl"))
        paths = [path / name for name in names]
        for file in paths:
            if file is None or not file.is_file():
                raise UserError(
                    f"{context.config.key}.path: {file}: no such file; {config.name} is in: {', '.join(names)}"
                )
    elif path is None and declared.files and config.dataset is None:
        paths = list(hub_files(source, declared.files))
    for file in paths:
        for place, raw in raw_rows(file, source):
            try:
                yield place, json_mapping(raw)
            except BadRow as bad:
                raise UserError(f"{place}: {bad}") from None


def _source(config: BenchmarkConfig, declared: Benchmark) -> DataSource:
    if config.path is not None:
        return DataSource(path=config.path)
    if config.dataset is not None:
        split = config.split or "test"
        return DataSource(dataset=config.dataset, subset=config.subset, split=split, revision=config.revision)
    return DataSource(
        dataset=declared.dataset,
        subset=config.subset or declared.subset,
        split=config.split or declared.split,
        revision=config.revision or declared.revision,
    )


def _described(facts: Mapping[str, Any]) -> str:
    dates = "" if facts["dates"] is None else f", {facts['dates'][0]} to {facts['dates'][1]}"
    return f"{facts['counts']['prompts']:,} problems{dates}, content {facts['sha256'][:12]}"

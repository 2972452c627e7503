"""A benchmark's problems, with answers of every model side by side."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.evaluation.measures import temperature_name
from dasd_megatron.grading.verdict import RIGHT, WRONG
from dasd_megatron.report.reader.content import Item, Piece, ResponseCard, View, sampled, shortened

# Characters of a reference that are shown; those of code are tests, of kilobytes.
MAX_REFERENCE = 400
COLUMNS = ["correct", "extracted", "reason", "detail", "finish_reason", "tokens", "text"]


@dataclass(frozen=True)
class _Example:
    """Where an answer is, and of how many at its temperature it is an example."""

    shard: int
    row: int
    right: int
    answers: int


def benchmark_view(artifacts: Mapping[str, Artifact], models: Sequence[str], benchmark: str, responses: int) -> View:
    """Of each problem, model and temperature one right answer and one wrong, about `responses` in all."""
    problems = artifacts[f"benchmark_{benchmark}"]
    grades = {model: artifacts[f"grade_{model}_{benchmark}"] for model in models}
    ids = [row["uuid"] for row in problems.rows("prompts", ["uuid"])]
    measures = grades[models[0]].manifest["measures"]
    each = sum(min(facts["samples"], 2) for facts in measures.values()) * len(models)
    chosen = sampled(ids, max(responses // each, 1))
    cards: dict[str, list[ResponseCard]] = defaultdict(list)
    for model, grade in grades.items():
        for uuid, card in _cards(model, grade, chosen):
            cards[uuid].append(card)
    rows = problems.rows("prompts", ["uuid", "input", "answer"])
    items = [_item(row, cards[row["uuid"]]) for row in rows if row["uuid"] in chosen]
    about = "Of each model and temperature a right answer and a wrong one, where there are both."
    return View(benchmark, about, len(ids), items)


def _item(row: Mapping[str, str], cards: Sequence[ResponseCard]) -> Item:
    reference = row["answer"]
    if len(reference) > MAX_REFERENCE:
        reference = f"{reference[:MAX_REFERENCE]} …"
    return Item(row["uuid"], row["input"], cards, reference)


def _cards(model: str, grade: Artifact, problems: set[str]) -> list[tuple[str, ResponseCard]]:
    """(problem, card) of a model's answers, by temperature."""
    found = []
    for (temperature, uuid), places in sorted(_examples(grade, problems).items()):
        for place in places:
            row = grade.reader("answers", place.shard, COLUMNS).take(np.array([place.row])).to_pylist()[0]
            sampling = "greedy" if temperature == 0 else f"T={temperature_name(temperature)}"
            marks = [RIGHT if row["correct"] else WRONG]
            if row["reason"] not in (RIGHT, WRONG):
                marks.append(row["reason"].replace("_", " "))
            facts = [f"{row['tokens']:,} tokens"]
            facts += [f"answer found: {row['extracted']}"] if row["extracted"] else []
            facts += [row["detail"]] if row["detail"] else []
            facts += [f"{place.right} of {place.answers} right"] if place.answers > 1 else []
            pieces = shortened([Piece(row["text"])])
            found.append((uuid, ResponseCard(f"{model.replace('_', ' ')}, {sampling}", marks, facts, pieces)))
    return found


def _examples(grade: Artifact, problems: set[str]) -> dict[tuple[float, str], list[_Example]]:
    """{(temperature, problem): the first right answer and the first wrong one}."""
    first: dict[tuple[float, str], dict[bool, tuple[int, int]]] = defaultdict(dict)
    counts: dict[tuple[float, str], list[bool]] = defaultdict(list)
    for shard in range(len(grade.shards("answers"))):
        table = grade.read("answers", ["uuid", "temperature", "correct"], shard)
        for row, content in enumerate(table.to_pylist()):
            if content["uuid"] in problems:
                key = content["temperature"], content["uuid"]
                first[key].setdefault(content["correct"], (shard, row))
                counts[key].append(content["correct"])
    return {
        key: [_Example(*place, sum(counts[key]), len(counts[key])) for _, place in sorted(places.items(), reverse=True)]
        for key, places in first.items()
    }

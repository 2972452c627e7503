"""How much data each step of a run makes: prompts, responses, packs and their tokens. No torch.

Each step's amount follows from the step before it. What a finished step has counted (its manifest) goes before what the recipe
expects (its `expected` section). All documents of a step are taken to be of the mean length, the filters of sampled stages
to let everything pass, and a student's answers that end by themselves to be as long as the teacher's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.recipe.estimate import training_flops
from dasd_megatron.recipe.schema import Expected, Training
from dasd_megatron.recipe.shape import Shape
from dasd_megatron.recipe.steps import Step


class Unknown(Exception):
    """Something can't be reckoned; the message says what would make it known."""


@dataclass(frozen=True)
class Documents:
    """Responses with their mean lengths in tokens.

    Attributes:
        prompts: how many questions they answer.
        prefix: what a student wrote before the teacher went on.
    """

    prompts: float
    count: float
    prompt: float
    response: float
    prefix: float = 0.0

    @property
    def length(self) -> float:
        """Of one document: prompt, prefix and response."""
        return self.prompt + self.prefix + self.response

    @property
    def tokens(self) -> float:
        """Of all documents."""
        return self.count * self.length

    def fewer(self, share: float) -> Documents:
        """So large a share of them."""
        return replace(self, prompts=share * self.prompts, count=share * self.count)

    def flops(self, shape: Shape) -> float:
        """Of a forward and backward pass."""
        return self.count * training_flops(shape, [self.length])


@dataclass(frozen=True)
class Packs:
    """Packs of documents, which may be of several lengths."""

    count: int
    documents: tuple[Documents, ...]

    @property
    def tokens(self) -> float:
        """Of all packs, without padding."""
        return sum(documents.tokens for documents in self.documents)

    def flops(self, shape: Shape, isolated: bool) -> float:
        """Of a forward and backward pass over all packs."""
        if not isolated:
            return self.count * training_flops(shape, [self.tokens / self.count])
        return sum(documents.flops(shape) for documents in self.documents)


class Amounts:
    """Amounts of a run's steps."""

    def __init__(self, expected: Expected) -> None:
        self._expected = expected
        self._known: dict[str, Documents] = {}
        self._counted: dict[str, Mapping[str, float] | None] = {}

    def prompts(self, step: Step) -> float:
        """Of a step `prompts`. Raises Unknown where neither the step is done nor a limit is set."""
        counts = self._counts(step)
        if counts is not None:
            return counts["prompts"]
        limit = step.config["source"]["limit"]
        if limit is None:
            key = "prompts.test" if step.config["needs_answer"] else "prompts.train"
            raise Unknown(f"how many prompts there are: set {key}.limit")
        return float(limit)

    def documents(self, step: Step) -> Documents:
        """The responses that a step makes, scores or passes on."""
        if step.name not in self._known:
            made, counts = self._made(step), self._counts(step)
            if counts is not None:
                tokens = counts.get("tokens", made.response * counts["responses"])
                made = made.fewer(counts["responses"] / made.count)
                made = replace(made, count=counts["responses"], response=tokens / counts["responses"])
            self._known[step.name] = made
        return self._known[step.name]

    def packs(self, step: Step) -> Packs:
        """Of a step `pack`; a pack is taken to be full."""
        counts = self._counts(step)
        if counts is not None:
            length = counts["tokens"] / counts["documents"]
            return Packs(int(counts["packs"]), (Documents(counts["documents"], counts["documents"], 0, length),))
        documents = [self.documents(source(step, "responses"))]
        if step.config["mixed_policy"] is not None:
            rows = self.documents(source(step, "off_policy"))
            wanted = round(step.config["mixed_policy"]["off_policy_ratio"] * documents[0].count)
            documents.append(rows.fewer(min(1.0, wanted / rows.count)))
        tokens = sum(part.tokens for part in documents)
        return Packs(math.ceil(tokens / step.config["context_length"]), tuple(documents))

    def answers(self, step: Step) -> Documents:
        """Of a step `evaluate`: one greedy answer to each problem, and the sampled ones."""
        settings = step.config["evaluation"]
        problems = self.prompts(source(step, "prompts"))
        answers = problems * (1 + len(settings["temperatures"]) * settings["samples"])
        return self._responses(problems, answers, settings["max_tokens"])

    def shards(self, step: Step) -> int:
        """Into how many parts an engine step's work is cut."""
        size: int
        match step.kind:
            case "evaluate":
                size, prompts = step.config["evaluation"]["problems_per_shard"], self.prompts(source(step, "prompts"))
            case "sample":
                size, prompts = step.config["sampling"]["prompts_per_shard"], self.documents(step).prompts
            case "answer":
                size, prompts = step.config["prompts_per_shard"], self.documents(step).prompts
            case _:
                return self.shards(source(step, "answers" if step.kind == "continue" else "responses"))
        return math.ceil(prompts / size)

    def _made(self, step: Step) -> Documents:
        """What a step makes of its inputs, by the recipe."""
        match step.kind:
            case "sample":
                return self._sampled(step)
            case "answer":
                return self._answered(step)
            case "continue":
                return self._continued(step)
            case "select":
                return self._selected(step)
        made = self.documents(source(step, "responses"))  # filter, score
        return made.fewer(self._expected.kept_continuations) if step.kind == "filter" and made.prefix else made

    def _sampled(self, step: Step) -> Documents:
        limit, sampling = step.config.get("limit"), step.config["sampling"]
        if isinstance(limit, dict):
            prompts = float(sum(limit.values()))
        else:
            try:
                prompts = self.prompts(source(step, "prompts"))
            except Unknown:
                if limit is None:
                    raise
                prompts = limit
            prompts = min(prompts, limit or prompts)
        return self._responses(prompts, prompts * sampling["responses_per_prompt"], sampling["max_tokens"])

    def _selected(self, step: Step) -> Documents:
        candidates, selection = self.documents(source(step, "responses")), step.config["selection"]
        count = min(candidates.count, candidates.prompts * selection["responses_per_prompt"])
        count = min(count, selection["total"] or count)
        return replace(candidates, prompts=min(candidates.prompts, count), count=count)

    def _answered(self, step: Step) -> Documents:
        selected, settings = self.documents(source(step, "responses")), step.config["mixed_policy"]
        prompts = min(selected.prompts, settings["prompts"] or selected.prompts)
        cut_off = self._expected.truncated_answers
        mean = cut_off * settings["length_cap"] + (1 - cut_off) * min(1.0, settings["length_cap"])
        return replace(selected, prompts=prompts, count=prompts, response=mean * selected.response)

    def _continued(self, step: Step) -> Documents:
        """The teacher goes on from a mean cut of the longest answers, for as long as one of its own responses."""
        answers = source(step, "answers")
        teachers = self.documents(source(answers, "responses")).response
        cut = (1 + step.config["mixed_policy"]["cut_after"]) / 2
        prefix = cut * answers.config["mixed_policy"]["length_cap"] * teachers
        continued = self.documents(answers).fewer(self._expected.truncated_answers)
        return replace(continued, prefix=prefix, response=min(teachers, step.config["sampling"]["max_tokens"]))

    def _responses(self, prompts: float, count: float, longest: int) -> Documents:
        response = min(self._expected.response_tokens, longest)
        return Documents(prompts, count, self._expected.prompt_tokens, response)

    def _counts(self, step: Step) -> Mapping[str, float] | None:
        """What a finished step has counted."""
        if step.name not in self._counted:
            self._counted[step.name] = Artifact(step.folder).manifest["counts"] if step.done else None
        return self._counted[step.name]


def source(step: Step, name: str) -> Step:
    """The step that another one reads as the input `name`."""
    found = step.inputs[name]
    assert isinstance(found, Step)
    return found


def training_of(step: Step) -> Training:
    """Settings of a step `train` that shape its result."""
    settings: dict[str, Any] = step.config["training"]
    return Training(**settings)

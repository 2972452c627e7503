"""While responses are sampled: how many of them the filters would let pass."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable

import pyarrow as pa

from dasd_megatron.artifacts.columns import numpy_rows
from dasd_megatron.artifacts.journal import JournalFollower
from dasd_megatron.artifacts.writer import ArtifactWriter
from dasd_megatron.curation.filtering import FilterConfig, FilterStep, ResponseFilter
from dasd_megatron.sampling.sampling_step import SamplingStepKind
from dasd_megatron.steps.step import Step

# The first responses are looked at, and of the others one in so many: filtering takes a core's time.
FIRST, ONE_IN = 200, 16
# After so many responses it is said when fewer than this share of them would pass.
ENOUGH, ALMOST_NONE = 100, 0.05
ADVICE = {
    "truncated": "raise sampling.max_tokens (and packing.context_length, which bounds it)",
    "too_long": "raise packing.context_length, or lower sampling.max_tokens so that long ones end early",
    "no_thinking": "set response_format=plain for a model that doesn't reason; else check that its chat template asks it to",
    "no_answer": "check response_format of the model that writes",
    "repeated": "the model loops: check dtype and chat template, or raise the temperature",
    "special_token": "check the model's chat template: it writes control tokens as text",
    "wrong_answer": "check the grader of prompts.train and the problems' answers, or set filters.right_answers_only=false",
}


class FilterPreview:
    """What a filter step will make of responses that are being sampled."""

    def __init__(self, sampled: Step, filtered: Step) -> None:
        assert isinstance(sampled.kind, SamplingStepKind)
        assert isinstance(filtered.config, FilterConfig)
        self._name, self._filtered, self._config = sampled.name, filtered, filtered.config
        self._follower = JournalFollower(ArtifactWriter(sampled.folder, {}).journals, sampled.kind.schema)
        self._seen, self._checked = 0, 0
        self._reasons: Counter[str] = Counter()
        self._warned = False

    def open(self) -> None:
        """Loads what it needs; in the main thread, for the libraries don't bear being imported by two at once."""
        teacher, student = (self._filtered.input_path(name) for name in ("teacher", "student"))
        self._rule = ResponseFilter.open(self._config, teacher, student)

    @classmethod
    def of(cls, step: Step, steps: Iterable[Step]) -> FilterPreview | None:
        """Of a step that samples what one of the steps filters; None for others."""
        for other in steps if isinstance(step.kind, SamplingStepKind) else ():
            if isinstance(other.kind, FilterStep) and other.inputs["responses"] is step:
                return cls(step, other)
        return None

    def note(self) -> str:
        """Once it is open: looks at new responses; says the share that would pass, of those that were looked at so far."""
        for read in self._follower.records():
            self._seen += 1
            if self._checked < FIRST or self._seen % ONE_IN == 0:
                self._check(read())
        if not self._checked:
            return ""
        share = 1 - self._reasons.total() / self._checked
        if self._checked >= ENOUGH and share < ALMOST_NONE and not self._warned:
            self._warned = True
            self._warn()
        return f"{share:.0%} would pass the filters"

    def _check(self, rows: pa.Table) -> None:
        for reason, _ in self._rule.apply(numpy_rows(rows)):
            self._checked += 1
            if reason is not None:
                self._reasons[reason] += 1

    def _warn(self) -> None:
        (reason, count), passed = self._reasons.most_common(1)[0], self._checked - self._reasons.total()
        advice = ADVICE.get(reason, "see what the filters ask for (`dasd settings filters`)")
        print(
            f"warning: {self._name}: of the first {self._checked} responses {passed} would pass the filters; {count} would be "
            f"dropped as {reason}. It goes on; to change that, stop it and {advice}",
            file=sys.stderr,
            flush=True,
        )

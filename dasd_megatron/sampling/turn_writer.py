"""Responses that student and teacher write in turns, from the first token to the last (see `mixed_policy.turns`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from typing import Any, Literal, cast

from dasd_megatron.sampling.engines.engine import Arrivals, Request, Sample
from dasd_megatron.sampling.engines.engine_process import EngineProcess
from dasd_megatron.sampling.seeds import sample_seed
from dasd_megatron.sampling.turn_boundaries import Boundaries, Boundary, Writer
from dasd_megatron.tokenization.response_format import CLOSE, ResponseFormat, opening
from dasd_megatron.tokenization.tokenizer import ChatTokenizer


@dataclass
class Draft:
    """A response that is being written.

    Attributes:
        prompt: the row that it answers.
        prompt_ids: in each model's tokens.
        ids: what is written so far, in each model's tokens; the teacher's are there once it had a turn.
        text: the same as canonical text.
        writer: whose turn it is.
        answering: the reasoning is over; the student writes the answer to its end.
        turn_bytes: of the student's turn, the teacher's, the student's, ...
        finish_reason: None while it is being written.
    """

    prompt: Mapping[str, Any]
    prompt_ids: Mapping[Writer, list[int]]
    text: str
    ids: dict[Writer, list[int]] = field(default_factory=lambda: {"student": []})
    writer: Writer = "student"
    answering: bool = False
    turn_bytes: list[int] = field(default_factory=list)
    turns: int = 0
    finish_reason: Literal["stop", "length"] | None = None


@dataclass(frozen=True)
class Party:
    """One of the two models.

    Attributes:
        tokens: most of a turn.
    """

    tokenizer: ChatTokenizer
    format: ResponseFormat
    tokens: int

    @property
    def stop_ids(self) -> list[int]:
        """What ends a turn before its most tokens."""
        return [*self.tokenizer.stop_ids, *self.format.closing_ids]


@dataclass(frozen=True)
class Limits:
    """Most tokens of a response, and of prompt and response together, by either model's count."""

    response: int
    document: int


@dataclass
class _Queue:
    """What one of the engines is at.

    Attributes:
        in_flight: drafts, by the numbers that the engine gives to requests.
    """

    engine: EngineProcess
    sent: int = 0
    in_flight: dict[int, int] = field(default_factory=dict)

    def ask(self, requests: Mapping[int, Request]) -> None:
        """Requests of drafts with these numbers."""
        if requests:
            self.engine.ask(list(requests.values()))
        for number in requests:
            self.in_flight[self.sent] = number
            self.sent += 1

    def ended(self) -> tuple[list[int], list[Sample]]:
        """The next drafts that have got their turn."""
        ended = self.engine.ended()
        return [self.in_flight.pop(number) for number, _ in ended], [sample for _, sample in ended]


@dataclass(frozen=True)
class TurnWriter:
    """Two models with their engines, which work side by side, each on the drafts whose turn is its own."""

    student: Party
    teacher: Party
    engines: Mapping[Writer, EngineProcess]
    boundaries: Boundaries
    limits: Limits
    temperature: float
    top_p: float
    seed: int
    # Drafts that are written at the same time.
    most: int
    _live: dict[int, Draft] = field(default_factory=dict, init=False)

    def draft(self, prompt: Mapping[str, Any]) -> Draft:
        """An empty response to a prompt (a row with `uuid` and `input`)."""
        student, teacher = (party.tokenizer.prompt_ids(prompt["input"]) for party in (self.student, self.teacher))
        return Draft(prompt, {"student": student, "teacher": teacher}, opening(self.student.tokenizer, student))

    def tokens_in_flight(self) -> int:
        """Tokens, so far, of the drafts that aren't finished."""
        return sum(len(draft.ids["student"]) for draft in list(self._live.values()))

    def generate(self, prompts: Iterable[Mapping[str, Any] | None]) -> Iterator[list[tuple[int, Draft]]]:
        """Finished responses to prompts (rows with `uuid` and `input`), by their numbers; see Engine.generate."""
        arrivals, live = Arrivals(prompts), self._live
        queues = {writer: _Queue(engine) for writer, engine in self.engines.items()}
        while live or not arrivals.exhausted:
            ready = []
            for number, prompt in arrivals.take(self.most - len(live)):
                live[number] = self.draft(prompt)
                ready.append(number)
            busy = {queue.engine.fileno(): writer for writer, queue in queues.items() if queue.in_flight}
            for readable in wait(list(busy), timeout=0 if ready else None) if busy else []:
                writer = busy[cast("int", readable)]
                numbers, samples = queues[writer].ended()
                self.take(writer, [live[number] for number in numbers], samples)
                ready += numbers
            self._ask(queues, {number: live[number] for number in ready})
            if ended := [(number, live.pop(number)) for number in ready if live[number].finish_reason is not None]:
                yield ended

    def _ask(self, queues: Mapping[Writer, _Queue], drafts: Mapping[int, Draft]) -> None:
        """Sends each draft to the model whose turn it is; those without room for more end here."""
        for writer, queue in queues.items():
            requests = {
                number: self._request(draft)
                for number, draft in drafts.items()
                if draft.writer == writer and draft.finish_reason is None
            }
            queue.ask({number: request for number, request in requests.items() if request is not None})

    def _request(self, draft: Draft) -> Request | None:
        """The next turn; None where there is no room, and the draft ends."""
        writer, party = draft.writer, self._party(draft.writer)
        prompt_ids = draft.prompt_ids[writer]
        if writer not in draft.ids:
            draft.ids[writer] = party.format.prefix_ids(draft.text, prompt_ids)
        room = min(
            min(self.limits.response, self.limits.document - len(draft.prompt_ids[name])) - len(known)
            for name, known in draft.ids.items()
        )
        if room < 1:
            draft.finish_reason = "length"
            return None
        return Request(
            [*prompt_ids, *draft.ids[writer]],
            seed=sample_seed(self.seed, "turns", draft.prompt["uuid"], draft.turns),
            max_tokens=room if draft.answering else min(room, party.tokens),
            temperature=self.temperature,
            top_p=self.top_p,
            stop_ids=party.stop_ids,
        )

    def take(self, writer: Writer, drafts: Sequence[Draft], samples: Sequence[Sample]) -> None:
        """Adds to each draft what the model wrote, as far as its turn goes."""
        party, reasoning = self._party(writer), []
        for draft, sample in zip(drafts, samples, strict=True):
            ids, text = _content(sample, party)
            if draft.answering:
                self._append(draft, writer, text, ids)
                draft.finish_reason = sample.finish_reason
            else:
                reasoning.append((draft, sample, text))
        texts, written = [draft.text for draft, _, _ in reasoning], [text for _, _, text in reasoning]
        boundaries = self.boundaries.of(writer, texts, written)
        for (draft, sample, text), boundary in zip(reasoning, boundaries, strict=True):
            self._reason(writer, draft, sample, text, boundary)

    def _reason(self, writer: Writer, draft: Draft, sample: Sample, text: str, boundary: Boundary) -> None:
        """Adds a turn to a draft's reasoning, which may end with it; `text`: what was written."""
        party, kept = self._party(writer), boundary.kept
        closed = (draft.text + text[:kept]).find(CLOSE, max(0, len(draft.text) - len(CLOSE) + 1))
        if closed >= 0:
            kept = closed + len(CLOSE) - len(draft.text)
        self._append(draft, writer, text[:kept], _content_ids(sample))
        draft.turns += 1
        draft.writer = boundary.writer
        stopped = sample.finish_reason == "stop" and kept == len(text)
        if closed >= 0:
            draft.answering, draft.writer = True, "student"
        elif stopped and sample.token_ids[-1] in party.format.closing_ids:
            self._append(draft, writer, party.format.close)
            draft.answering, draft.writer = True, "student"
        elif stopped:
            draft.finish_reason = "stop"
        elif not kept:  # not a whole character in a whole turn
            draft.finish_reason = "length"

    def _append(self, draft: Draft, writer: Writer, text: str, own_ids: Sequence[int] = ()) -> None:
        """Adds text; in the writer's own tokens `own_ids`, where they are that text."""
        own = self._party(writer).tokenizer.decode_bytes(own_ids) == text.encode()
        for name, ids in draft.ids.items():
            ids += own_ids if own and name == writer else self._party(name).tokenizer.encode(text)
        draft.text += text
        if (len(draft.turn_bytes) % 2 == 1) != (writer == "student"):
            draft.turn_bytes.append(0)
        draft.turn_bytes[-1] += len(text.encode())

    def _party(self, writer: Writer) -> Party:
        return self.student if writer == "student" else self.teacher


def _content_ids(sample: Sample) -> list[int]:
    """What was written, without the token that ended it."""
    ids: list[int] = sample.token_ids[: -1 if sample.finish_reason == "stop" else None].tolist()
    return ids


def _content(sample: Sample, party: Party) -> tuple[list[int], str]:
    """What was written, as ids and as whole characters."""
    ids = _content_ids(sample)
    return ids, party.tokenizer.decode_bytes(ids).decode(errors="ignore")

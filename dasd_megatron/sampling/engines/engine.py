"""The protocol of an engine: token ids in, token ids and log-probabilities out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Request:
    """One response to sample.

    Attributes:
        prompt_ids: token ids to continue.
        seed: makes the sample reproducible, whatever else is sampled with it.
        max_tokens: the longest response.
        temperature: 0 is greedy.
        top_p: share of the distribution that is sampled from.
        stop_ids: any of them ends the response.
    """

    prompt_ids: Sequence[int]
    seed: int
    max_tokens: int
    temperature: float
    top_p: float
    stop_ids: Sequence[int]


@dataclass(frozen=True)
class Sample:
    """One sampled response.

    Attributes:
        token_ids: int32 [n], the end-of-turn token included where the model wrote it.
        logprobs: float32 [n], natural log-probability of each token under the model at T=1, whatever the sampling temperature.
        finish_reason: "stop" if the model ended its turn, "length" if it was truncated.
    """

    token_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    finish_reason: Literal["stop", "length"]

    @classmethod
    def of(
        cls, token_ids: Sequence[int], logprobs: Sequence[float], finish_reason: Literal["stop", "length"]
    ) -> Sample:
        """From lists."""
        return cls(np.array(token_ids, np.int32), np.array(logprobs, np.float32), finish_reason)


# Requests as they come: None where there is none at the moment.
Requests = Iterable[Request | None]
# What ended at the same time: the numbers of requests, from 0 in the order that they came in, with their samples.
Ended = list[tuple[int, Sample]]


# Of a position, the likeliest tokens that `brier` counts.
TOP = 50


@dataclass(frozen=True)
class TokenScores:
    """What a model makes of tokens 1..n-1 of a sequence, each after those before it, at T=1.

    Attributes:
        logprobs: float32 [n - 1], natural log-probabilities.
        ranks: int32 [n - 1], how many tokens of the vocabulary are at least as likely, itself included: 1 is the likeliest.
        brier: float32 [n - 1], Brier score 1 - 2 p(token) + sum of p(v)^2 of the distribution over the TOP likeliest tokens v;
            None where it wasn't asked for.
    """

    logprobs: NDArray[np.float32]
    ranks: NDArray[np.int32]
    brier: NDArray[np.float32] | None = None


def brier_scores(top: NDArray[np.float32], is_token: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Brier scores of tokens (see TokenScores).

    Args:
        top: [tokens, TOP], log-probabilities of the likeliest tokens at each place.
        is_token: [tokens, TOP], which of them is the token itself; none where it is outside.
    """
    likelihood = np.exp(top - top.max(axis=1, keepdims=True))
    likelihood /= likelihood.sum(axis=1, keepdims=True)
    own = (likelihood * is_token).sum(axis=1)
    return np.asarray(1 - 2 * own + (likelihood**2).sum(axis=1), np.float32)


class Engine(Protocol):
    """Samples from a model and scores text under it.

    A prompt that leaves no room for a response gives an empty sample that ends in "length". `score` takes sequences of at
    most `max_length - 1` tokens.
    """

    @property
    def max_length(self) -> int:
        """Tokens of the longest prompt and response together."""

    def generate(self, requests: Requests) -> Iterator[Ended]:
        """A sample of each request, as soon as it has ended.

        Takes a request whenever there is room for one: as long as there are any, the engine is full. After a None it goes on with
        what it has, and asks again; with nothing in flight, it is for `requests` to wait.
        """

    def tokens_in_flight(self) -> int:
        """Tokens, so far, of the responses that haven't ended; about so many, and from any thread."""

    def score(self, sequences: Sequence[Sequence[int]], brier: bool = False) -> list[TokenScores]:
        """Scores of each sequence of token ids; `brier` costs an engine time and memory, and is left out unless asked for.
        May be called while `generate` takes a request."""


EMPTY = Sample.of([], [], "length")


T = TypeVar("T")


class Arrivals(Generic[T]):
    """Things as they come, numbered from 0; None where there is none at the moment."""

    def __init__(self, coming: Iterable[T | None]) -> None:
        self._coming, self._count = iter(coming), 0
        self.exhausted = False

    def take(self, most: int) -> list[tuple[int, T]]:
        """At most so many, as far as there are any at the moment."""
        taken: list[tuple[int, T]] = []
        while len(taken) < most and not self.exhausted:
            try:
                arrived = next(self._coming)
            except StopIteration:
                self.exhausted = True
                break
            if arrived is None:
                break
            taken.append((self._count, arrived))
            self._count += 1
        return taken


def generate_all(engine: Engine, requests: Sequence[Request]) -> list[Sample]:
    """A sample of each request, in order."""
    found = {number: sample for ended in engine.generate(requests) for number, sample in ended}
    return [found[number] for number in range(len(requests))]

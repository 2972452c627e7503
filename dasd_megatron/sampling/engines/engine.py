"""The protocol of an engine: token ids in, token ids and log-probabilities out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol


@dataclass(frozen=True)
class Request:
    """One response to sample.

    Attributes:
        prompt_ids: token ids to continue.
        seed: makes the sample reproducible, whatever else is sampled with it.
        max_tokens: the longest response.
    """

    prompt_ids: Sequence[int]
    seed: int
    max_tokens: int


@dataclass(frozen=True)
class Sample:
    """One sampled response.

    Attributes:
        token_ids: [n], the end-of-turn token included where the model wrote it.
        logprobs: [n], natural log-probability of each token under the model at T=1, whatever the sampling temperature.
        finish_reason: "stop" if the model ended its turn, "length" if it was truncated.
    """

    token_ids: list[int]
    logprobs: list[float]
    finish_reason: Literal["stop", "length"]


class Engine(Protocol):
    """Samples from a model and scores text under it.

    A prompt that leaves no room for a response gives an empty sample that ends in "length". `score` takes sequences of at
    most `max_length - 1` tokens.
    """

    @property
    def max_length(self) -> int:
        """Tokens of the longest prompt and response together."""

    def generate(
        self, requests: Sequence[Request], temperature: float, top_p: float, stop_ids: Sequence[int]
    ) -> list[Sample]:
        """One sample a request, in order; temperature 0 is greedy. Any of `stop_ids` ends a response."""

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """For each sequence of n token ids the T=1 log-probabilities of tokens 1..n-1, [n - 1]."""


EMPTY = Sample([], [], "length")


def generate_where_there_is_room(
    requests: Sequence[Request], max_length: int, generate: Callable[[list[Request]], list[Sample]]
) -> list[Sample]:
    """`generate` of the requests whose prompts leave room, EMPTY for the others."""
    fitting = [request for request in requests if len(request.prompt_ids) < max_length]
    samples = iter(generate(fitting) if fitting else [])
    return [next(samples) if len(request.prompt_ids) < max_length else EMPTY for request in requests]

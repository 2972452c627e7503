"""The protocol of an engine: token ids in, token ids and log-probabilities out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray


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

    def generate(
        self, requests: Sequence[Request], temperature: float, top_p: float, stop_ids: Sequence[int]
    ) -> list[Sample]:
        """One sample a request, in order; temperature 0 is greedy. Any of `stop_ids` ends a response."""

    def score(self, sequences: Sequence[Sequence[int]], brier: bool = False) -> list[TokenScores]:
        """Scores of each sequence of token ids; `brier` costs an engine time and memory, and is left out unless asked for."""


EMPTY = Sample([], [], "length")


def generate_where_there_is_room(
    requests: Sequence[Request], max_length: int, generate: Callable[[list[Request]], list[Sample]]
) -> list[Sample]:
    """`generate` of the requests whose prompts leave room, EMPTY for the others."""
    fitting = [request for request in requests if len(request.prompt_ids) < max_length]
    samples = iter(generate(fitting) if fitting else [])
    return [next(samples) if len(request.prompt_ids) < max_length else EMPTY for request in requests]

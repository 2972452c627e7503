"""Responses whose token ids lack markup: the ids as the model itself would have written them.

Published token ids may begin with the reasoning, go on with the answer, and end before the end of the turn.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dasd_megatron.tokenization.response_format import CLOSE, OPEN, ResponseFormat
from dasd_megatron.tokenization.tokenizer import ChatTokenizer

# Of markup that was added.
CERTAIN = 0.0


@dataclass(frozen=True)
class WholeResponse:
    """A response with all of its markup.

    Attributes:
        token_ids: int32 [n].
        logprobs: float32 [n], 0 where markup was added.
        finish_reason: "stop" where it has reasoning and an answer.
    """

    token_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    finish_reason: Literal["stop", "length"]


def with_markup(
    form: ResponseFormat,
    tokenizer: ChatTokenizer,
    prompt_ids: Sequence[int],
    token_ids: NDArray[np.int32],
    logprobs: NDArray[np.float32],
    text: str | None,
) -> WholeResponse | None:
    """The response with the markup that it lacks; None where no markup makes it spell `text`.

    Args:
        token_ids, logprobs: [n].
        text: canonical text, however its markup is spaced; None if it isn't known: then what has reasoning and an answer will do.
    """
    ended = len(token_ids) > 0 and int(token_ids[-1]) in tokenizer.stop_ids
    body = token_ids[:-1] if ended else token_ids
    for inserted in _insertions(form, tokenizer, body, text):
        ids = _insert(body, inserted)
        found = form.parse(prompt_ids, [], ids, stopped=False).text
        if not found.strip():  # all of it was taken for a header
            continue
        problem = form.problem_of(found)
        if problem is not None if text is None else (problem, _parts(found)) != (form.problem_of(text), _parts(text)):
            continue
        probabilities = _insert(logprobs[: len(body)], {place: [CERTAIN] * len(new) for place, new in inserted.items()})
        if ended or problem is None:
            end = (token_ids[-1], logprobs[-1]) if ended else (tokenizer.end_of_turn_id, CERTAIN)
            ids, probabilities = np.append(ids, np.int32(end[0])), np.append(probabilities, np.float32(end[1]))
        return WholeResponse(ids, probabilities, "stop" if ended or problem is None else "length")
    return WholeResponse(token_ids, logprobs, "stop" if ended else "length") if text is None else None


def _insertions(
    form: ResponseFormat, tokenizer: ChatTokenizer, body: NDArray[np.int32], text: str | None
) -> Iterator[dict[int, list[int]]]:
    """What to try: markup by the place that it goes to."""
    yield {}
    yield {0: form.opening_ids}
    place = None if text is None else _answer_begins(tokenizer, body, text)
    if place:
        yield {0: form.opening_ids, place: form.answer_ids}


def _answer_begins(tokenizer: ChatTokenizer, body: NDArray[np.int32], text: str) -> int | None:
    """Number of the token that the answer begins with, or white space before it; None where no token does."""
    spelled, answer = tokenizer.decode_bytes(body), _parts(text)[1].encode()
    first = len(spelled.rstrip()) - len(answer)
    if not answer or first <= 0:
        return None
    starts = tokenizer.token_bytes.starts(body)
    token = int(np.searchsorted(starts, first, side="right")) - 1
    return None if spelled[starts[token] : first].strip() else token


def _insert(values: NDArray[Any], inserted: Mapping[int, Sequence[float]]) -> NDArray[Any]:
    places = np.array([place for place, new in inserted.items() for _ in new], np.int64)
    return np.insert(values, places, np.array([item for new in inserted.values() for item in new], values.dtype))


def _parts(text: str) -> tuple[str, str]:
    """Reasoning and answer."""
    thinking, _, answer = text.strip().removeprefix(OPEN).partition(CLOSE)
    return thinking.strip(), answer.strip()

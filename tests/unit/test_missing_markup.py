"""Published token ids that lack markup become what the model wrote."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dasd_megatron.tokenization.missing_markup import WholeResponse, with_markup
from dasd_megatron.tokenization.response_format import Harmony, ResponseFormat, Think
from dasd_megatron.tokenization.tokenizer import ChatTokenizer

REASONING, ANSWER = "We need x.\n\nSo 2+2 = 4.", "It is **4**.\n\nDone."
TEXT = f"<think>\n{REASONING}\n</think>\n\n{ANSWER}"


def whole(
    form: ResponseFormat, tokenizer: ChatTokenizer, ids: list[int], text: str | None = TEXT
) -> WholeResponse | None:
    """With log-probabilities -1, -2, ..."""
    logprobs = -np.arange(1, len(ids) + 1, dtype=np.float32)
    prompt_ids = tokenizer.prompt_ids("2+2?")
    return with_markup(form, tokenizer, prompt_ids, np.array(ids, np.int32), logprobs, text)


def parts(tokenizer: ChatTokenizer, form: ResponseFormat) -> list[list[int]]:
    """Opening, reasoning, what is between, answer, end."""
    content = [tokenizer.encode(text) for text in (REASONING, ANSWER)]
    return [form.opening_ids, content[0], form.answer_ids, content[1], [tokenizer.end_of_turn_id]]


@pytest.mark.parametrize("style", ["harmony", "think"])
@pytest.mark.parametrize("lacking", [(), (0,), (4,), (0, 4), (0, 2), (0, 2, 4)])
def test_what_lacks_is_added(gptoss: ChatTokenizer, qwen3: ChatTokenizer, style: str, lacking: tuple[int, ...]) -> None:
    tokenizer, form = (gptoss, Harmony(gptoss)) if style == "harmony" else (qwen3, Think(qwen3))
    written = parts(tokenizer, form)
    published = [token for number, part in enumerate(written) for token in part if number not in lacking]
    found = whole(form, tokenizer, published)
    assert found is not None
    assert found.token_ids.tolist() == [token for part in written for token in part]
    assert found.finish_reason == "stop"
    added = [number in lacking for number, part in enumerate(written) for _ in part]
    assert np.all(found.logprobs[added] == 0)
    assert np.array_equal(found.logprobs[~np.array(added)], -np.arange(1, len(published) + 1))


def test_without_text_what_has_reasoning_and_an_answer_will_do(gptoss: ChatTokenizer) -> None:
    form = Harmony(gptoss)
    opening, reasoning, between, answer, end = parts(gptoss, form)
    found = whole(form, gptoss, [*reasoning, *between, *answer, *end], None)
    assert found is not None
    assert found.token_ids.tolist() == [*opening, *reasoning, *between, *answer, *end]
    lacking = whole(form, gptoss, [*reasoning, *answer], None)  # where the answer begins can't be known
    assert lacking is not None
    assert lacking.token_ids.tolist() == [*reasoning, *answer]
    assert lacking.finish_reason == "length"


def test_a_truncated_response_stays_one(gptoss: ChatTokenizer) -> None:
    form = Harmony(gptoss)
    opening, reasoning, *_ = parts(gptoss, form)
    found = whole(form, gptoss, reasoning, f"<think>\n{REASONING}")
    assert found is not None
    assert found.token_ids.tolist() == [*opening, *reasoning]
    assert found.finish_reason == "length"


@pytest.mark.parametrize(
    "text", [TEXT.replace("4", "5"), TEXT[:-4], f"<think>\n{ANSWER}\n</think>\n\n{REASONING}", REASONING, ""]
)
def test_another_text_is_none(gptoss: ChatTokenizer, text: str) -> None:
    form = Harmony(gptoss)
    written = parts(gptoss, form)
    for lacking in ((), (0,), (0, 2, 4)):
        ids = [token for number, part in enumerate(written) for token in part if number not in lacking]
        assert whole(form, gptoss, ids, text) is None


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    reasoning=st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="<|"), min_size=1, max_size=60),
    answer=st.text(st.characters(blacklist_categories=["Cs"], blacklist_characters="<|"), min_size=1, max_size=40),
)
def test_any_text_comes_back_or_is_none(gptoss: ChatTokenizer, reasoning: str, answer: str) -> None:
    if not reasoning.strip() or not answer.strip():
        return
    form = Harmony(gptoss)
    ids = [*gptoss.encode(reasoning), *gptoss.encode(answer)]
    text = f"<think>\n{reasoning}\n</think>\n\n{answer}"
    found = whole(form, gptoss, ids, text)
    if found is None:  # reasoning and answer begin or end in white space that can't be told from the markup's
        assert reasoning != reasoning.strip() or answer != answer.strip()
        return
    parsed = form.parse([], [], found.token_ids, stopped=True)
    assert [part.strip() for part in parsed.text.removeprefix("<think>").split("</think>")] == [
        reasoning.strip(),
        answer.strip(),
    ]

"""Responses in think and harmony form: parsing, byte offsets, and continuing a prefix."""

from __future__ import annotations

import pytest

from dasd_megatron.tokenization.response_format import (
    MARKUP,
    Harmony,
    Plain,
    Think,
    response_format,
    response_tokens,
    structure_problem,
)
from dasd_megatron.tokenization.tokenizer import ChatTokenizer
from dasd_megatron.utils.errors import UserError


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<think>a</think>b", None),
        ("<think>\na\n</think>\n\nb", None),
        ("b", "no_thinking"),
        ("<think>a", "no_answer"),
        ("<think>a</think>  ", "no_answer"),
        ("<think></think>b", "no_thinking"),
        ("<think>a<think>b</think>c", "markup_in_text"),
        ("<think>a</think>b</think>c", "markup_in_text"),
        ('<think>a</think><tool_call>{"name": "f"}</tool_call>', "tool_call"),
    ],
)
def test_structure(text: str, problem: str | None) -> None:
    assert structure_problem(text) == problem


def test_think_offsets(teacher_tokenizer: ChatTokenizer) -> None:
    style = Think(teacher_tokenizer)
    ids = [*teacher_tokenizer.encode("<think>3*4=2;</think>2"), teacher_tokenizer.end_of_turn_id]
    response = style.parse([], [], ids, stopped=True)
    assert response.text == "<think>3*4=2;</think>2"
    assert response.token_starts.tolist() == [0, 7, 10, 12, 13, 21, 22]
    assert (response.prefix_bytes, response.problem) == (0, None)


@pytest.mark.parametrize(
    ("text", "problem"),
    [("3*4=2;", None), ("  ", "no_answer"), ("<think>a</think>b", "markup_in_text"), ("<function=f>", "tool_call")],
)
def test_plain_structure(student_tokenizer: ChatTokenizer, text: str, problem: str | None) -> None:
    assert Plain(student_tokenizer).problem_of(text) == problem


def test_plain_is_all_answer(student_tokenizer: ChatTokenizer) -> None:
    style = response_format("plain", student_tokenizer)
    prompt, prefix = student_tokenizer.prompt_ids("3*4?"), "3*4="
    ids = [*student_tokenizer.encode("2;"), student_tokenizer.end_of_turn_id]
    response = style.parse(prompt, style.prefix_ids(prefix, prompt), ids, stopped=True)
    assert (response.text, response.problem, response.prefix_bytes) == ("3*4=2;", None, 4)
    assert response.token_starts.tolist() == [4, 5, 6]
    whole = style.parse(prompt, [], [*student_tokenizer.encode("3*4=2;"), ids[-1]], stopped=True)
    (own, starts), *_ = response_tokens(student_tokenizer, [(prompt, whole.text)])
    assert whole.token_starts.tolist() == starts.tolist()
    assert student_tokenizer.decode_bytes(own[:-1]) == b"3*4=2;"


def test_think_goes_on_from_a_prefix(teacher_tokenizer: ChatTokenizer) -> None:
    style = Think(teacher_tokenizer)
    prefix = "<think>3*4=2;"
    prefix_ids = style.prefix_ids(prefix, teacher_tokenizer.prompt_ids("3*4?"))
    rest = [*teacher_tokenizer.encode("</think>2"), teacher_tokenizer.end_of_turn_id]
    response = style.parse([], prefix_ids, rest, stopped=True)
    assert response.text == "<think>3*4=2;</think>2"
    assert response.prefix_bytes == len(prefix)
    assert response.token_starts.tolist() == [13, 21, 22]


def test_think_opened_by_the_template(qwen3: ChatTokenizer) -> None:
    """Thinking models' templates write `<think>` themselves: it belongs to the response all the same."""
    style = Think(qwen3)
    prompt = qwen3.encode("<|im_start|>assistant\n<think>\n")
    ids = qwen3.encode("Hm.\n</think>\n\n4")
    response = style.parse(prompt, [], [*ids, qwen3.end_of_turn_id], stopped=True)
    assert response.text == "<think>\nHm.\n</think>\n\n4"
    assert response.problem is None
    assert response.token_starts[0] == len("<think>\n")
    assert style.prefix_ids("<think>\nHm", prompt) == qwen3.encode("Hm")
    assert style.prefix_ids("<think>Hm", prompt) == qwen3.encode("Hm")


def test_a_student_whose_template_opens_the_reasoning_does_not_open_it_again(qwen3: ChatTokenizer) -> None:
    text = "<think>\nHm.\n</think>\n\n4"
    prompt = qwen3.encode("<|im_start|>assistant\n<think>\n")
    ids, starts = response_tokens(qwen3, [(prompt, text)])[0]
    assert qwen3.decode_bytes(ids).decode() == "Hm.\n</think>\n\n4<|im_end|>"
    assert (starts[0], starts[-1]) == (len("<think>\n"), len(text))
    closed, _ = response_tokens(qwen3, [(qwen3.encode("<|im_start|>assistant\n"), text)])[0]
    assert qwen3.decode_bytes(closed).decode() == text + "<|im_end|>"


def test_broken_characters_are_a_problem(qwen3: ChatTokenizer) -> None:
    ids = qwen3.encode("<think>🤷🏽‍♀️</think>x")
    problems = set()
    for cut in range(2, len(ids)):
        response = Think(qwen3).parse([], [], ids[:cut], stopped=False)
        assert response.problem == "invalid_utf8" or response.text.encode() == qwen3.decode_bytes(ids[:cut])
        problems.add(response.problem)
    assert "invalid_utf8" in problems


REASONING, ANSWER = "We need 2+2. That's 4.", "The answer is **4**."
RESPONSE = (
    f"<|channel|>analysis<|message|>{REASONING}<|end|><|start|>assistant<|channel|>final<|message|>{ANSWER}<|return|>"
)


def test_harmony_becomes_think(gptoss: ChatTokenizer) -> None:
    ids = gptoss.encode(RESPONSE)
    response = Harmony(gptoss).parse([], [], ids, stopped=True)
    assert response.text == f"<think>\n{REASONING}\n</think>\n\n{ANSWER}"
    assert response.problem is None
    data = response.text.encode()
    for token, start in zip(ids, response.token_starts, strict=True):
        if start != MARKUP and start < len(data):
            content = gptoss.token_bytes[token]
            assert data[start : start + len(content)] == content
    assert response.token_starts[-1] == len(data)
    content = b"".join(
        gptoss.token_bytes[t] for t, s in zip(ids, response.token_starts, strict=True) if s not in (MARKUP, len(data))
    )
    assert content.decode() == REASONING + ANSWER


@pytest.mark.parametrize("cut", range(1, 40, 3))
def test_harmony_goes_on_from_any_prefix(gptoss: ChatTokenizer, cut: int) -> None:
    """The student's prefix in think form, the teacher's continuation in its own: together one canonical text."""
    style = Harmony(gptoss)
    whole = f"<think>\n{REASONING}\n</think>\n\n{ANSWER}"
    at = min(len("<think>\n") + cut, len(f"<think>\n{REASONING}"))
    prefix = whole[:at]
    prefix_ids = style.prefix_ids(prefix, [])
    rest = (
        f"{REASONING[at - len('<think>') - 1 :]}<|end|><|start|>assistant<|channel|>final<|message|>{ANSWER}<|return|>"
    )
    response = style.parse([], prefix_ids, gptoss.encode(rest), stopped=True)
    assert response.text == whole
    assert response.prefix_bytes in (at, at + len("\n</think>\n\n"))
    assert response.problem is None


def test_harmony_prefix_in_the_answer(gptoss: ChatTokenizer) -> None:
    style = Harmony(gptoss)
    prefix = f"<think>\n{REASONING}\n</think>\n\nThe answer"
    response = style.parse([], style.prefix_ids(prefix, []), gptoss.encode(" is **4**.<|return|>"), stopped=True)
    assert response.text == f"<think>\n{REASONING}\n</think>\n\n{ANSWER}"
    assert response.prefix_bytes == len(prefix)


FINAL = "<|start|>assistant<|channel|>final<|message|>b<|return|>"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("<|channel|>analysis<|message|>a<|end|>", "no_answer"),
        ("<|channel|>final<|message|>b<|return|>", "no_thinking"),
        ("<|channel|>commentary to=functions.f<|message|>{}<|call|>", "tool_call"),
        ("<|channel|>commentary<|message|>I will look.<|end|>" + RESPONSE, "commentary"),
        (RESPONSE.replace("<|return|>", "<|end|>") + FINAL, "several_answers"),
        ("<|channel|>analysis<|message|>After </think> comes the answer.<|end|>" + FINAL, "markup_in_text"),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>commentary to=functions.f<|message|>{}<|call|>",
            "tool_call",
        ),
    ],
)
def test_harmony_problems(gptoss: ChatTokenizer, text: str, problem: str) -> None:
    assert Harmony(gptoss).parse([], [], gptoss.encode(text), stopped=True).problem == problem


def test_harmony_needs_its_tokens(student_tokenizer: ChatTokenizer) -> None:
    with pytest.raises(UserError, match="response_format is harmony, but the tokenizer has no token"):
        response_format("harmony", student_tokenizer)


def test_harmony_ended_by_another_stop_token(gptoss: ChatTokenizer) -> None:
    ids = gptoss.encode(RESPONSE.replace("<|return|>", "<|endoftext|>"))
    response = Harmony(gptoss).parse([], [], ids, stopped=True)
    assert response.text == f"<think>\n{REASONING}\n</think>\n\n{ANSWER}"
    assert response.problem is None

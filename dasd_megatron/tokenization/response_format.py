"""How a model's raw response becomes reasoning and answer, and back.

The canonical text, which students learn, filters read and people see, is `<think>reasoning</think>answer`. A model of the
`think` format writes it as it is. gpt-oss (`harmony`) writes channels, delimited by special tokens; its analysis and final
channels become the two parts. Of a model that doesn't reason (`plain`) all is the answer. Token ids stay the truth: every
token keeps the byte offset of its content in the canonical text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dasd_megatron.tokenization.token_bytes import TokenBytes
from dasd_megatron.tokenization.tokenizer import ChatTokenizer
from dasd_megatron.utils.errors import UserError

OPEN, CLOSE = "<think>", "</think>"
# Starts of tool calls in the think format (Qwen3, Llama); harmony marks them by channel and recipient.
_TOOL_CALL = re.compile(r"<tool_call>|<function=|<\|python_tag\|>")
# The offset of a token that has no counterpart in the canonical text.
MARKUP = -1


@dataclass(frozen=True)
class Response:
    """A response in canonical form.

    Attributes:
        text: canonical text.
        token_starts: int32 [tokens], for each response token the byte offset in `text` where its content starts; MARKUP where
            it has none; the end of the text for the token that ends the turn.
        prefix_bytes: bytes of `text` that another model wrote (mixed policy), else 0.
        problem: why the response can't be used (a reason for the manifest), or None.
    """

    text: str
    token_starts: NDArray[np.int32]
    prefix_bytes: int = 0
    problem: str | None = None


class ResponseFormat(Protocol):
    """One way to write responses.

    Attributes:
        close: canonical text at the end of a reasoning that ended with one of `closing_ids`.
        closing_ids: tokens that end the reasoning and aren't part of the text.
        opening_ids: what a response begins with, before its reasoning.
        answer_ids: what is between reasoning and answer.
    """

    close: str
    closing_ids: list[int]
    opening_ids: list[int]
    answer_ids: list[int]

    def prefix_ids(self, prefix: str, prompt_ids: Sequence[int]) -> list[int]:
        """Token ids that, after the prompt, make the model continue the canonical text `prefix`."""

    def parse(self, prompt_ids: ArrayLike, prefix_ids: ArrayLike, ids: ArrayLike, stopped: bool) -> Response:
        """Canonical form of the response `prefix_ids + ids`; `stopped` says that the last id ends the turn."""

    def problem_of(self, text: str) -> str | None:
        """Why a canonical text can't be used as a whole response, or None."""


def response_format(name: str, tokenizer: ChatTokenizer) -> ResponseFormat:
    """The format of this name for this tokenizer. Raises UserError when the tokenizer lacks its special tokens."""
    formats: dict[str, type[ResponseFormat]] = {"think": Think, "harmony": Harmony, "plain": Plain}
    return formats[name](tokenizer)  # type: ignore[call-arg]


def structure_problem(text: str) -> str | None:
    """Why a canonical text lacks a thinking part followed by an answer, or None."""
    if _TOOL_CALL.search(text):
        return "tool_call"
    if not text.lstrip().startswith(OPEN):
        return "no_thinking"
    # A text about the markup itself, say: a reader couldn't tell it from the real one.
    if text.count(OPEN) > 1 or text.count(CLOSE) > 1:
        return "markup_in_text"
    thinking, close, answer = text.partition(CLOSE)
    if not close:
        return "no_answer"
    if not thinking.strip().removeprefix(OPEN).strip():
        return "no_thinking"
    return None if answer.strip() else "no_answer"


def response_tokens(
    tokenizer: ChatTokenizer, responses: Sequence[tuple[Sequence[int], str]]
) -> list[tuple[NDArray[np.int32], NDArray[np.int32]]]:
    """Canonical responses in a model's own tokens, end of turn included, and the byte offset in the text of each token.

    What the model's chat template has written of a response already (see `opening`) is not written again.

    Args:
        responses: of each its prompt's ids and its text.
    """
    bodies = [_unopened(tokenizer, prompt_ids, text) for prompt_ids, text in responses]
    found = []
    for (_, text), body, (ids, starts) in zip(responses, bodies, tokenizer.encode_with_spans(bodies), strict=True):
        size = len(text.encode())
        skipped = size - len(body.encode())
        found.append((np.append(ids, np.int32(tokenizer.end_of_turn_id)), np.append(starts + skipped, np.int32(size))))
    return found


def _unopened(tokenizer: ChatTokenizer, prompt_ids: ArrayLike, text: str) -> str:
    """`text` without the `<think>` that the chat template has written, however the text spaces it."""
    return text.lstrip().removeprefix(OPEN).lstrip("\n") if opening(tokenizer, prompt_ids) else text


def opening(tokenizer: ChatTokenizer, prompt_ids: ArrayLike) -> str:
    """What the chat template itself writes of the response: those of some thinking models open the reasoning."""
    match = re.search(rb"<think>\s*$", tokenizer.decode_bytes(np.asarray(prompt_ids, np.int32)[-4:]))
    return match.group().decode() if match else ""


class Think:
    """`<think>reasoning</think>answer`, as Qwen3, DeepSeek and others write it."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self.close, self.closing_ids = CLOSE, list[int]()
        self.opening_ids, self.answer_ids = tokenizer.encode(f"{OPEN}\n"), tokenizer.encode(f"\n{CLOSE}\n\n")

    def prefix_ids(self, prefix: str, prompt_ids: Sequence[int]) -> list[int]:
        return self._tokenizer.encode(_unopened(self._tokenizer, prompt_ids, prefix))

    def parse(self, prompt_ids: ArrayLike, prefix_ids: ArrayLike, ids: ArrayLike, stopped: bool) -> Response:
        before = opening(self._tokenizer, prompt_ids).encode()
        prefix, own = self._tokenizer.decode_bytes(prefix_ids), np.asarray(ids, np.int32)
        content = own[:-1] if stopped else own
        data = before + prefix + self._tokenizer.decode_bytes(content)
        starts = self._tokenizer.token_bytes.starts(content) + np.int32(len(before) + len(prefix))
        if stopped:
            starts = np.append(starts, np.int32(len(data)))
        prefix_bytes = len(before) + len(prefix) if prefix else 0
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return Response(data.decode(errors="replace"), starts, prefix_bytes, "invalid_utf8")
        return Response(text, starts, prefix_bytes, self.problem_of(text))

    def problem_of(self, text: str) -> str | None:
        return structure_problem(text)


class Plain(Think):
    """A response without reasoning: all of it is the answer."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        super().__init__(tokenizer)
        self.close, self.opening_ids, self.answer_ids = "", [], []

    def problem_of(self, text: str) -> str | None:
        if _TOOL_CALL.search(text):
            return "tool_call"
        if OPEN in text or CLOSE in text:  # a reader would take it for reasoning
            return "markup_in_text"
        return None if text.strip() else "no_answer"


class Harmony:
    """gpt-oss's channels: analysis is the reasoning, final the answer, all else a tool call.

    The prompt ends with `<|start|>assistant`; a response is one or more messages
    `<|channel|>NAME<|message|>CONTENT<|end|>`, separated by `<|start|>assistant`, the last ended by `<|return|>`.
    """

    _SPECIAL = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>")
    _OPENING = "<|channel|>analysis<|message|>"
    _ANSWER = "<|end|><|start|>assistant<|channel|>final<|message|>"

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self._names: dict[int, str] = {}
        for name in self._SPECIAL:
            token = tokenizer.token_id(name)
            if token is None:
                raise UserError(
                    f"{tokenizer.folder}: response_format is harmony, but the tokenizer has no token {name}"
                )
            self._names[token] = name
        self._ids = np.array(list(self._names), np.int32)
        self.close = f"\n{CLOSE}"
        self.closing_ids = [token for token, name in self._names.items() if name == "<|end|>"]
        self.opening_ids, self.answer_ids = tokenizer.encode(self._OPENING), tokenizer.encode(self._ANSWER)

    def prefix_ids(self, prefix: str, prompt_ids: Sequence[int]) -> list[int]:
        thinking, close, answer = prefix.lstrip().removeprefix(OPEN).removeprefix("\n").partition(CLOSE)
        text = self._OPENING + (thinking.removesuffix("\n") if close else thinking)
        if close:
            text += self._ANSWER + answer.lstrip("\n")
        return self._tokenizer.encode(text)

    def parse(self, prompt_ids: ArrayLike, prefix_ids: ArrayLike, ids: ArrayLike, stopped: bool) -> Response:
        prefix = np.asarray(prefix_ids, np.int32)
        tokens = np.concatenate([prefix, np.asarray(ids, np.int32)])
        messages = _Messages(self._tokenizer.token_bytes, len(tokens))
        marks = np.flatnonzero(np.isin(tokens, self._ids)).tolist()
        if stopped and (not marks or marks[-1] != len(tokens) - 1):
            marks.append(len(tokens) - 1)  # another of the model's stop tokens
        reached = 0
        for mark in marks:
            messages.text(reached, tokens[reached:mark])
            messages.mark(mark, self._names.get(int(tokens[mark]), "<|return|>"))
            reached = mark + 1
        messages.text(reached, tokens[reached:])
        own = messages.starts[len(prefix) :]
        prefix_bytes = 0
        if len(prefix):
            placed = own[own != MARKUP]
            prefix_bytes = int(placed[0]) if len(placed) else len(messages.data)
        try:
            text = messages.data.decode()
        except UnicodeDecodeError:
            return Response(messages.data.decode(errors="replace"), own, prefix_bytes, "invalid_utf8")
        return Response(text, own, prefix_bytes, messages.problem or self.problem_of(text))

    def problem_of(self, text: str) -> str | None:
        return structure_problem(text)


class _Messages:
    """Harmony's messages, read one stretch of tokens between two markers after another.

    Attributes:
        data: the canonical text so far.
        starts: int32 [tokens], see Response.token_starts.
        problem: why the response can't be used, or None.
    """

    def __init__(self, token_bytes: TokenBytes, tokens: int) -> None:
        self._token_bytes = token_bytes
        self.data, self.starts = bytearray(), np.full(tokens, MARKUP, np.int32)
        self.problem: str | None = None
        # The channel whose content is being read, "" in a header.
        self._part, self._header = "", bytearray()
        self._answered = False

    def text(self, place: int, ids: NDArray[np.int32]) -> None:
        """Tokens from `place` on, none of them a marker."""
        if self._part:
            self.starts[place : place + len(ids)] = self._token_bytes.starts(ids) + np.int32(len(self.data))
            self.data += self._token_bytes.join(ids)
        else:
            self._header += self._token_bytes.join(ids)

    def mark(self, place: int, name: str) -> None:
        """The marker at `place`."""
        if name == "<|message|>":
            channel = self._header.decode(errors="replace").removeprefix("assistant").strip()
            if channel == "final" and self._answered:
                self.problem = self.problem or "several_answers"
            elif channel not in ("analysis", "final"):  # a commentary is for a tool if it names one, else for the user
                self.problem = self.problem or ("commentary" if channel == "commentary" else "tool_call")
            self.data += _join(channel, bool(self.data))
            self._answered |= channel == "final"
            self._part = channel
            return
        if name == "<|call|>":
            self.problem = self.problem or "tool_call"
        if name == "<|return|>":
            self.starts[place] = len(self.data)
        self._part, self._header = "", bytearray()


def _join(channel: str, continued: bool) -> bytes:
    """Canonical markup before a message's content."""
    if channel == "final":
        return f"\n{CLOSE}\n\n".encode() if continued else f"{OPEN}\n{CLOSE}\n\n".encode()
    return b"\n" if continued else f"{OPEN}\n".encode()

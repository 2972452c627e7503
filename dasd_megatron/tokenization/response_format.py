"""How a model's raw response becomes reasoning and answer, and back.

The canonical text, which students learn, filters read and people see, is `<think>reasoning</think>answer`. A model of the
`think` format writes it as it is. gpt-oss (`harmony`) writes channels, delimited by special tokens; its analysis and final
channels become the two parts. Token ids stay the truth: every token keeps the byte offset of its content in the canonical text.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

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
        token_starts: for each response token the byte offset in `text` where its content starts; MARKUP where it has none;
            the end of the text for the token that ends the turn.
        prefix_bytes: bytes of `text` that another model wrote (mixed policy), else 0.
        problem: why the response can't be used (a reason for the manifest), or None.
    """

    text: str
    token_starts: list[int]
    prefix_bytes: int = 0
    problem: str | None = None


class ResponseFormat(Protocol):
    """One way to write responses."""

    def prefix_ids(self, prefix: str, prompt_ids: Sequence[int]) -> list[int]:
        """Token ids that, after the prompt, make the model continue the canonical text `prefix`."""

    def parse(
        self, prompt_ids: Sequence[int], prefix_ids: Sequence[int], ids: Sequence[int], stopped: bool
    ) -> Response:
        """Canonical form of the response `prefix_ids + ids`; `stopped` says that the last id ends the turn."""


def response_format(name: str, tokenizer: ChatTokenizer) -> ResponseFormat:
    """The format of this name for this tokenizer. Raises UserError when the tokenizer lacks its special tokens."""
    return Harmony(tokenizer) if name == "harmony" else Think(tokenizer)


def structure_problem(text: str) -> str | None:
    """Why a canonical text lacks a thinking part followed by an answer, or None."""
    if _TOOL_CALL.search(text):
        return "tool_call"
    if not text.lstrip().startswith(OPEN) or text.count(OPEN) != 1:
        return "no_thinking"
    thinking, close, answer = text.partition(CLOSE)
    if not close or CLOSE in answer:
        return "no_answer"
    if not thinking.strip().removeprefix(OPEN).strip():
        return "no_thinking"
    return None if answer.strip() else "no_answer"


def response_tokens(tokenizer: ChatTokenizer, prompt_ids: Sequence[int], text: str) -> tuple[list[int], list[int]]:
    """A canonical response in a model's own tokens, end of turn included, and the byte offset in `text` of each.

    What the model's chat template has written of the response already (see `opening`) is not written again.
    """
    body = _unopened(tokenizer, prompt_ids, text)
    size = len(text.encode())
    skipped = size - len(body.encode())
    ids, starts = tokenizer.encode_with_spans(body)
    return [*ids, tokenizer.end_of_turn_id], [*(skipped + start for start in starts), size]


def _unopened(tokenizer: ChatTokenizer, prompt_ids: Sequence[int], text: str) -> str:
    """`text` without the `<think>` that the chat template has written, however the text spaces it."""
    return text.lstrip().removeprefix(OPEN).lstrip("\n") if opening(tokenizer, prompt_ids) else text


def opening(tokenizer: ChatTokenizer, prompt_ids: Sequence[int]) -> str:
    """What the chat template itself writes of the response: those of some thinking models open the reasoning."""
    match = re.search(rb"<think>\s*$", tokenizer.decode_bytes(prompt_ids[-4:]))
    return match.group().decode() if match else ""


class Think:
    """`<think>reasoning</think>answer`, as Qwen3, DeepSeek and others write it."""

    def __init__(self, tokenizer: ChatTokenizer) -> None:
        self._tokenizer = tokenizer

    def prefix_ids(self, prefix: str, prompt_ids: Sequence[int]) -> list[int]:
        return self._tokenizer.encode(_unopened(self._tokenizer, prompt_ids, prefix))

    def parse(
        self, prompt_ids: Sequence[int], prefix_ids: Sequence[int], ids: Sequence[int], stopped: bool
    ) -> Response:
        data = bytearray(opening(self._tokenizer, prompt_ids).encode() + self._tokenizer.decode_bytes(prefix_ids))
        prefix_bytes = len(data) if prefix_ids else 0
        starts = []
        for token in ids[:-1] if stopped else ids:
            starts.append(len(data))
            data += self._tokenizer.token_bytes[token]
        if stopped:
            starts.append(len(data))
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return Response(data.decode(errors="replace"), starts, prefix_bytes, "invalid_utf8")
        return Response(text, starts, prefix_bytes, structure_problem(text))


class Harmony:
    """gpt-oss's channels: analysis is the reasoning, final the answer, all else a tool call.

    The prompt ends with `<|start|>assistant`; a response is one or more messages
    `<|channel|>NAME<|message|>CONTENT<|end|>`, separated by `<|start|>assistant`, the last ended by `<|return|>`.
    """

    _SPECIAL = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>")

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

    def prefix_ids(self, prefix: str, prompt_ids: Sequence[int]) -> list[int]:
        thinking, close, answer = prefix.lstrip().removeprefix(OPEN).removeprefix("\n").partition(CLOSE)
        text = "<|channel|>analysis<|message|>" + (thinking.removesuffix("\n") if close else thinking)
        if close:
            text += "<|end|><|start|>assistant<|channel|>final<|message|>" + answer.lstrip("\n")
        return self._tokenizer.encode(text)

    def parse(
        self, prompt_ids: Sequence[int], prefix_ids: Sequence[int], ids: Sequence[int], stopped: bool
    ) -> Response:
        data = bytearray()
        starts: list[int] = []
        problem: str | None = None
        header, channel, part = bytearray(), "", ""  # part: the channel whose content is being read, "" in a header
        for place, token in enumerate([*prefix_ids, *ids], 1):
            special = self._names.get(token)
            if special is None and stopped and place == len(prefix_ids) + len(ids):
                special = "<|return|>"  # another of the model's stop tokens
            start = MARKUP
            if special is None and part:
                start = len(data)
                data += self._tokenizer.token_bytes[token]
            elif special is None:
                header += self._tokenizer.token_bytes[token]
            elif special == "<|message|>":
                channel = header.decode(errors="replace").removeprefix("assistant").strip()
                if channel not in ("analysis", "final") or (channel == "final" and CLOSE.encode() in data):
                    problem = problem or "tool_call"
                data += self._join(channel, bool(data))
                part = channel
            else:
                if special == "<|call|>":
                    problem = problem or "tool_call"
                if special == "<|return|>":
                    start = len(data)
                part, header = "", bytearray()
            starts.append(start)
        own = starts[len(prefix_ids) :]
        prefix_bytes = next((start for start in own if start != MARKUP), len(data)) if prefix_ids else 0
        try:
            text = data.decode()
        except UnicodeDecodeError:
            return Response(data.decode(errors="replace"), own, prefix_bytes, "invalid_utf8")
        return Response(text, own, prefix_bytes, problem or structure_problem(text))

    @staticmethod
    def _join(channel: str, continued: bool) -> bytes:
        """Canonical markup before a message's content."""
        if channel == "final":
            return f"\n{CLOSE}\n\n".encode() if continued else f"{OPEN}\n{CLOSE}\n\n".encode()
        return b"\n" if continued else f"{OPEN}\n".encode()

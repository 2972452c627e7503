"""Which bytes each token stands for, so that two tokenizers meet at byte offsets.

Alignment by decoded strings breaks on text whose characters are split over tokens; bytes always add up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from dasd_megatron.utils.errors import UserError


class TokenBytes:
    """token id -> bytes, for byte-level BPE, SentencePiece-style (byte fallback) and plain-text vocabularies.

    `definition` is the content of tokenizer.json. Added tokens stand for their own names.
    """

    def __init__(self, definition: Mapping[str, Any]) -> None:
        decoders = _names(definition.get("decoder"))
        vocabulary = definition["model"]["vocab"]
        # A unigram vocabulary is a list of [token, score].
        unigram = isinstance(vocabulary, list)
        tokens = {entry[0]: index for index, entry in enumerate(vocabulary)} if unigram else vocabulary
        if "ByteLevel" in decoders or "ByteLevel" in _names(definition.get("pre_tokenizer")):
            convert: Callable[[str], bytes] = _byte_level
        elif "ByteFallback" in decoders or "Metaspace" in decoders:
            convert = _sentencepiece
        elif definition["model"].get("type") == "WordPiece":
            raise UserError(
                "a WordPiece tokenizer drops white space, so its tokens have no byte offsets; use another model"
            )
        else:
            convert = str.encode
        self._bytes = {index: convert(token) for token, index in tokens.items()}
        for added in definition.get("added_tokens", []):
            self._bytes[added["id"]] = added["content"].encode()

    def __getitem__(self, token: int) -> bytes:
        return self._bytes.get(token, b"")  # padded vocabulary rows have no text


def _names(part: Mapping[str, Any] | None) -> set[str]:
    """Types of a tokenizer component and of all that a Sequence of them holds."""
    if not part:
        return set()
    inner = [*part.get("decoders", []), *part.get("pretokenizers", [])]
    return {part["type"]}.union(*(_names(item) for item in inner))


@cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + index): byte for index, byte in enumerate(others)}


def _byte_level(token: str) -> bytes:
    table = _byte_of_character()
    return bytes(table[character] for character in token) if all(c in table for c in token) else token.encode()


def _sentencepiece(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("▁", " ").encode()


def byte_spans(text: str, ids: Sequence[int], offsets: Sequence[tuple[int, int]], token_bytes: TokenBytes) -> list[int]:
    """Byte offset in `text` where each token starts; a token ends where the next one starts, the last with the text.

    The spans partition the text's UTF-8 bytes exactly. Where the tokenizer normalises text (Qwen: NFC), its tokens' bytes
    differ from the text's; then tokens share out the bytes of the characters that they came from.

    Args:
        ids: token ids of `text`, [n].
        offsets: the tokenizer's (start, end) character offsets of each token, [n].
    """
    starts, total = [], 0
    for token in ids:
        starts.append(total)
        total += len(token_bytes[token])
    data = text.encode()
    if total == len(data) and b"".join(token_bytes[token] for token in ids) == data:
        return starts
    return _spans_of_normalized(text, ids, offsets, token_bytes)


def _spans_of_normalized(
    text: str, ids: Sequence[int], offsets: Sequence[tuple[int, int]], token_bytes: TokenBytes
) -> list[int]:
    position = [0]  # byte offset of each character
    for character in text:
        position.append(position[-1] + len(character.encode()))
    starts: list[int] = []
    reached = 0  # where the span before ends: spans never go back
    group_end, used = 0, 0
    for token, (first, last) in zip(ids, offsets, strict=True):
        if position[first] >= group_end:  # a token of new characters
            group_start, group_end, used = position[first], position[last], 0
        else:  # another part of the same characters
            group_end = max(group_end, position[last])
        start = min(max(group_start + used, reached), position[last])
        reached = max(reached, start)
        starts.append(reached)
        used += len(token_bytes[token])
    if starts:
        starts[0] = 0
    return starts

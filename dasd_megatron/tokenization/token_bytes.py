"""Which bytes each token stands for, so that two tokenizers meet at byte offsets.

Alignment by decoded strings breaks on text whose characters are split over tokens; bytes always add up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

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
        known = {index: convert(token) for token, index in tokens.items()}
        known.update({added["id"]: added["content"].encode() for added in definition.get("added_tokens", [])})
        # By id; the last entry stands for all ids beyond: padded vocabulary rows have no text.
        self._bytes = [known.get(index, b"") for index in range(max(known) + 2)]
        self._sizes = np.array([len(content) for content in self._bytes], np.int32)
        # The bytes of all tokens in a row, and where each token's begin.
        self._row = np.frombuffer(b"".join(self._bytes), np.uint8)
        self._places = np.cumsum(self._sizes, dtype=np.int32) - self._sizes

    def __len__(self) -> int:
        """Tokens of the vocabulary, added ones included."""
        return len(self._bytes) - 1

    def __getitem__(self, token: int) -> bytes:
        return self._bytes[min(token, len(self._bytes) - 1)]

    def join(self, ids: ArrayLike) -> bytes:
        """The bytes of these tokens, one after another."""
        known = self._known(ids)
        sizes = self._sizes[known]
        starts = np.cumsum(sizes, dtype=np.int32) - sizes
        places = np.repeat(self._places[known] - starts, sizes)
        places += np.arange(len(places), dtype=np.int32)
        content: bytes = self._row[places].tobytes()
        return content

    def starts(self, ids: ArrayLike) -> NDArray[np.int32]:
        """Where each of these tokens starts in their bytes, [n]."""
        sizes = self._sizes[self._known(ids)]
        return np.cumsum(sizes, dtype=np.int32) - sizes

    def _known(self, ids: ArrayLike) -> NDArray[np.int32]:
        return np.minimum(np.asarray(ids, np.int32), len(self._bytes) - 1)


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


def byte_offsets(text: str) -> NDArray[np.int64]:
    """Where each character of a text begins in its UTF-8 form, and where the last one ends, [characters + 1]."""
    points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    offsets = np.zeros(len(points) + 1, np.int64)
    np.cumsum(1 + (points >= 0x80) + (points >= 0x800) + (points >= 0x10000), out=offsets[1:])
    return offsets


def spans_of_normalized(
    text: str, ids: ArrayLike, offsets: Sequence[tuple[int, int]], token_bytes: TokenBytes
) -> NDArray[np.int32]:
    """Byte offset in `text` where each token starts, [n], where the tokenizer normalises text (Qwen: NFC).

    Its tokens' bytes differ from the text's then; they share out the bytes of the characters that they came from, and still
    partition the text.

    Args:
        ids: token ids of `text`, [n].
        offsets: the tokenizer's (start, end) character offsets of each token, [n].
    """
    if not offsets:
        return np.zeros(0, np.int32)
    position = byte_offsets(text)
    first, last = np.array(offsets, np.int64).T
    # A group is the tokens of the same characters: one that begins behind all that came before begins a new one.
    reached = np.maximum.accumulate(last)
    begins = np.concatenate([[True], first[1:] >= reached[:-1]])
    group = np.flatnonzero(begins)[np.cumsum(begins) - 1]  # the first token of each token's group
    own = token_bytes.starts(ids)
    starts = np.minimum(position[first][group] + own - own[group], position[last])
    starts[0] = 0
    return np.maximum.accumulate(starts).astype(np.int32)

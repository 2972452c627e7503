"""Where a turn ends in what a model wrote, and whose the next one is (see `mixed_policy.turns`)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from dasd_megatron.tokenization.response_format import OPEN
from dasd_megatron.utils.errors import UserError

Writer = Literal["student", "teacher"]
# A predictor's labels.
CAPABILITY, STYLE = 0, 1
# How much a predictor sees, in its tokens (TESSY's own setting); in characters, never fewer; texts that it sees at a time.
SEEN_TOKENS, SEEN_CHARACTERS, BATCH = 512, 16 * 512, 32


@dataclass(frozen=True)
class Boundary:
    """Of what a model wrote, how many characters are kept, and who writes next."""

    kept: int
    writer: Writer


class Boundaries(Protocol):
    """A rule that ends turns."""

    def of(self, writer: Writer, texts: Sequence[str], written: Sequence[str]) -> list[Boundary]:
        """Of what `writer` wrote after each of `texts`. At least one character is kept of what isn't empty."""


class SentenceBoundaries:
    """The student opens a sentence, or writes all of a short one; the teacher goes on to the end of the sentence.

    White space behind a sentence is left to whoever writes the next: a model writes it together with the next word.
    """

    def __init__(self, sentence_end: str) -> None:
        self._end = re.compile(sentence_end)

    def of(self, writer: Writer, texts: Sequence[str], written: Sequence[str]) -> list[Boundary]:
        return [self._boundary(writer, text) for text in written]

    def _boundary(self, writer: Writer, text: str) -> Boundary:
        end = self._sentence_end(text)
        if end is not None:
            return Boundary(end, "teacher" if writer == "student" else "student")
        if writer == "teacher":
            return Boundary(len(text), "teacher")
        # A word that isn't finished is the teacher's to write.
        whole = len(re.sub(r"[^\S\n]*\S*$", "", text))
        return Boundary(whole or len(text), "teacher")

    def _sentence_end(self, text: str) -> int | None:
        """Where the first sentence ends, spaces left out. What a turn ends with may be followed by a space."""
        for match in self._end.finditer(text + " "):
            end = len(text[: match.end()].rstrip(" \t"))
            if text[:end].strip() not in ("", OPEN):
                return end
        return None


class PredictedBoundaries:
    """A turn ends with the first token that the writer's predictor takes for the other's kind, and the word that it is in.

    The first token of a turn is never such a one: each turn brings the text further.
    """

    def __init__(self, student: Path, teacher: Path) -> None:
        self._predictors = {"student": TokenClassifier(student), "teacher": TokenClassifier(teacher)}

    def of(self, writer: Writer, texts: Sequence[str], written: Sequence[str]) -> list[Boundary]:
        found = []
        for start in range(0, len(texts), BATCH):
            part = slice(start, start + BATCH)
            before = [text[-SEEN_CHARACTERS:] for text in texts[part]]
            labels = self._predictors[writer].labels([a + b for a, b in zip(before, written[part], strict=True)])
            found += [
                labeled_boundary(writer, len(known), own, tokens)
                for known, own, tokens in zip(before, written[part], labels, strict=True)
            ]
        return found


def labeled_boundary(writer: Writer, before: int, written: str, labels: Sequence[tuple[int, int, int]]) -> Boundary:
    """The boundary in `written`, which comes after `before` characters.

    Args:
        labels: of tokens of the whole text (first character, last character + 1, label).
    """
    other = STYLE if writer == "teacher" else CAPABILITY
    own = [(end - before, label) for start, end, label in labels if start > before]
    end = next((end for end, label in own if label == other), None)
    if end is None:
        last = own[-1][1] if own else other
        return Boundary(len(written), "student" if last == STYLE else "teacher")
    space = re.compile(r"\s").search(written, end)
    return Boundary(space.start() if space else len(written), "student" if other == STYLE else "teacher")


class TokenClassifier:
    """A model that labels tokens, from a Hugging Face folder; on a GPU where there is one. Raises UserError."""

    def __init__(self, folder: Path) -> None:
        import torch
        from transformers import AutoModelForTokenClassification, AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            model, loading = AutoModelForTokenClassification.from_pretrained(
                folder, trust_remote_code=False, use_safetensors=True, output_loading_info=True
            )
        except Exception as error:  # the library raises many kinds for damaged folders
            raise UserError(f"{folder}: can't be loaded as a token classifier: {error}") from None
        if loading["missing_keys"]:
            raise UserError(
                f"{folder}: can't be loaded as a token classifier: it has no {', '.join(sorted(loading['missing_keys']))}"
            )
        if model.config.num_labels != 2:
            raise UserError(
                f"{folder}: labels tokens with {model.config.num_labels} labels; a predictor of turns has two, 0 for "
                "capability and 1 for style"
            )
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._model = model.to(self._device, torch.bfloat16 if self._device.type == "cuda" else torch.float32).eval()
        self._tokenizer.truncation_side = self._tokenizer.padding_side = "left"
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token

    def labels(self, texts: Sequence[str]) -> list[list[tuple[int, int, int]]]:
        """Of each text its last tokens: (first character, last character + 1, label)."""
        import torch

        encoded = self._tokenizer(
            list(texts),
            truncation=True,
            max_length=SEEN_TOKENS,
            padding="longest",
            return_tensors="pt",
            return_offsets_mapping=True,
            add_special_tokens=False,
        )
        offsets, mask = encoded.pop("offset_mapping"), encoded["attention_mask"].bool()
        with torch.inference_mode():
            predicted = self._model(**encoded.to(self._device)).logits.argmax(-1).cpu()
        return [
            [
                (start, end, label)
                for (start, end), label in zip(places[own].tolist(), labels[own].tolist(), strict=True)
            ]
            for places, labels, own in zip(offsets, predicted, mask, strict=True)
        ]

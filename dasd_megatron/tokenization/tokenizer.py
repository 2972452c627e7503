"""A model's tokenizer and chat template: prompts to token ids, text to token ids with byte offsets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dasd_megatron.config.models import ModelConfig
from dasd_megatron.tokenization.token_bytes import TokenBytes, spans_of_normalized
from dasd_megatron.utils.errors import UserError

# Stands for the assistant's turn when looking for what the template puts after it.
_PROBE = "0"


class ChatTokenizer:
    """The tokenizer in a Hugging Face model folder, with its chat template.

    Raises UserError when the folder holds no usable fast tokenizer or no chat template.
    """

    def __init__(self, folder: Path, settings: ModelConfig | None = None) -> None:
        """`settings`: of the model's section of a recipe; by default those that such a section has."""
        from transformers import PreTrainedTokenizerFast  # not AutoTokenizer: that one imports torch

        self.folder = folder
        try:
            self._tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder))
        except Exception as error:  # the library raises many kinds for damaged files
            raise UserError(f"{folder}: the tokenizer can't be loaded: {error}") from None
        if not self._tokenizer.chat_template:
            raise UserError(
                f"{folder}: the tokenizer has no chat template; put the model's chat_template.jinja into the folder"
            )
        settings = settings or ModelConfig(model=folder)
        system_prompt = settings.system_prompt
        self._system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
        # A variable of this name goes before the function that transformers gives to templates, which tells today's date.
        self._template_kwargs = {**settings.template_kwargs, "strftime_now": settings.template_date.strftime}
        self.token_bytes = TokenBytes(json.loads(self._tokenizer.backend_tokenizer.to_str()))
        self.end_of_turn_id = self._end_of_turn_id()

    def prompt_ids(self, text: str) -> list[int]:
        """Token ids of a conversation with one user message, up to where the assistant's answer begins."""
        messages = [*self._system, {"role": "user", "content": text}]
        return self.encode(self._render(messages, add_generation_prompt=True))

    def encode(self, text: str) -> list[int]:
        """Token ids of `text` as it is: nothing added before or after."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def encode_with_spans(self, texts: Sequence[str]) -> list[tuple[NDArray[np.int32], NDArray[np.int32]]]:
        """Of each text its token ids, and the byte offset in its UTF-8 form where each token starts.

        A token ends where the next one starts, the last with the text: the spans partition its bytes exactly.
        """
        tokenizer, joined = self._tokenizer.backend_tokenizer, self.token_bytes.join
        fast = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        all_ids = [np.array(encoding.ids, np.int32) for encoding in fast]
        found = [(ids, self.token_bytes.starts(ids)) for ids in all_ids]
        # Where the tokenizer has changed the text, offsets say what came from where; they cost half as much again.
        changed = [number for number, text in enumerate(texts) if joined(all_ids[number]) != text.encode()]
        slow = tokenizer.encode_batch([texts[number] for number in changed], add_special_tokens=False)
        for number, encoding in zip(changed, slow, strict=True):
            ids = all_ids[number]
            found[number] = ids, spans_of_normalized(texts[number], ids, encoding.offsets, self.token_bytes)
        return found

    def decode_bytes(self, ids: ArrayLike) -> bytes:
        """The bytes that these tokens stand for, special tokens as their names."""
        return self.token_bytes.join(ids)

    def special_tokens(self, ids: ArrayLike) -> list[int]:
        """Those of `ids` that the tokenizer marks special, in their order: they structure a conversation and are no text."""
        tokens = np.asarray(ids, np.int32)
        found: list[int] = tokens[np.isin(tokens, self._special_ids)].tolist()
        return found

    @cached_property
    def _special_ids(self) -> NDArray[np.int32]:
        added = self._tokenizer.added_tokens_decoder
        return np.array([token for token, content in added.items() if content.special], np.int32)

    @cached_property
    def stop_ids(self) -> list[int]:
        """Tokens that end a response: the template's end of turn, and what generation_config.json names."""
        try:
            eos = json.loads((self.folder / "generation_config.json").read_text()).get("eos_token_id")
        except FileNotFoundError:
            eos = None
        except ValueError as error:
            raise UserError(f"{self.folder / 'generation_config.json'}: not valid JSON: {error}") from None
        more = eos if isinstance(eos, list) else [] if eos is None else [eos]
        return sorted({self.end_of_turn_id, *more})

    def token_id(self, name: str) -> int | None:
        """Id of the token with this name, or None."""
        ids: dict[str, int] = self._tokenizer.get_added_vocab()
        return ids.get(name)

    def _render(self, messages: list[dict[str, str]], add_generation_prompt: bool) -> str:
        try:
            text: str = self._tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt, **self._template_kwargs
            )
        except Exception as error:  # jinja errors, and templates that call raise_exception
            raise UserError(f"{self.folder}: the chat template refused the messages: {error}") from None
        return text

    def _end_of_turn_id(self) -> int:
        """The token with which the template closes an assistant's turn, which training must teach.

        Taken from the template, not from eos_token: base models name an eos that their chat template doesn't use.
        """
        turn = [*self._system, {"role": "user", "content": "?"}, {"role": "assistant", "content": _PROBE}]
        rendered = self._render(turn, add_generation_prompt=False)
        after = self.encode(rendered[rendered.rfind(_PROBE) + len(_PROBE) :])
        if not after or after[0] not in self._tokenizer.added_tokens_decoder:
            raise UserError(
                f"{self.folder}: the chat template puts no special token after an assistant's turn, so the student could "
                "not learn to stop; use the template of the model's chat version"
            )
        return after[0]


def open_tokenizer(folder: Path, model: ModelConfig) -> ChatTokenizer:
    """The tokenizer of a model folder, with the settings of the model's section of the recipe."""
    return ChatTokenizer(folder, model)

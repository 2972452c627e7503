"""What is asked of each server of a pool before its first request: that all run one model, and give what alignment needs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dasd_megatron.config.sampling import ServerConfig
from dasd_megatron.sampling.engines.engine import Sample
from dasd_megatron.tokenization.tokenizer import ChatTokenizer
from dasd_megatron.utils.errors import UserError

# Asks a server: method, path, body.
Ask = Callable[[str, str, Mapping[str, Any] | None], Awaitable[Mapping[str, Any]]]
# A server's tokens of this text must be the model folder's.
TEXT = "3 × 4 = 12, naïve 你好\n\tdef f(x): return x**2  # 100%"
# A temperature that is all but greedy, and what rounding may change a log-probability by in bf16.
COLD, NOISE = 0.02, 0.2
# Nothing but temperature and top_p shapes the distribution, whatever the server's defaults.
PLAIN = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


class ServedModel:
    """The model that the servers of a pool run.

    Attributes:
        name: that they serve it by.
        max_length: the longest sequence that each of them takes, as far as they say so.
    """

    def __init__(self, settings: ServerConfig, folder: Path) -> None:
        self.name: str | None = settings.model
        self.max_length: int | None = None
        self._folder = folder
        # The server that the name is of, if no setting says it.
        self._named_by: str | None = None
        # The first server that was checked, and its log-probabilities of TEXT.
        self._first: tuple[str, list[float]] | None = None

    async def check(self, url: str, ask: Ask) -> None:
        """Raises UserError for a server that can't be used, or runs another model than those before it."""
        model = self._listed(url, (await ask("GET", "/models", None)).get("data"))
        if self.name is None:
            self.name, self._named_by = str(model["id"]), url
        body = {"model": self.name, "prompt": self._ids, "max_tokens": 1, "logprobs": 0, **PLAIN}
        # So cold that both take the likeliest token.
        greedy, cold = [
            sample_of(
                only_choice(await ask("POST", "/completions", {**body, **setting, "return_token_ids": True})), url
            )
            for setting in ({"temperature": 0.0}, {"temperature": COLD, "seed": 0})
        ]
        if greedy.token_ids[0] == cold.token_ids[0] and abs(greedy.logprobs[0] - cold.logprobs[0]) > NOISE:
            raise UserError(
                f"engine.server: {self.name} gives log-probabilities at the sampling temperature, and they are needed at T=1; "
                "start vLLM with --logprobs-mode raw_logprobs"
            )
        echoed = await ask("POST", "/completions", {**body, "temperature": 0.0, "echo": True})
        self._compare(url, only_choice(echoed))
        length = model.get("max_model_len")
        if isinstance(length, int):
            self.max_length = min(length, self.max_length or length)

    def _listed(self, url: str, listed: Any) -> Mapping[str, Any]:
        """The model's entry among those that a server lists."""
        if not isinstance(listed, list) or not all(isinstance(model, dict) and "id" in model for model in listed):
            raise UserError(
                f"{url}/models: lists no models, so it is no OpenAI-compatible server; its address mostly ends in /v1"
            )
        names = [str(model["id"]) for model in listed]
        shown = ", ".join(names) or "none"
        if self.name is None and len(names) != 1:
            raise UserError(f"engine.server.model: choose the model that servers run; {url} serves {shown}")
        name = self.name or names[0]
        if name not in names:
            if self._named_by is not None:
                raise UserError(f"engine.server.endpoints: {self._named_by} serves {name}, and {url} serves {shown}")
            raise UserError(f"engine.server.model={name}: not served by {url}, which has {shown}")
        entry: Mapping[str, Any] = listed[names.index(name)]
        return entry

    def _compare(self, url: str, echoed: Mapping[str, Any]) -> None:
        """Raises UserError where a server reads other text from token ids than the folder's tokenizer does, or knows the text
        better or worse than the server before it."""
        text = str(echoed.get("text", ""))
        if self._text not in text:
            if len(text) < len(TEXT) // 2:
                raise UserError(
                    f"{url}: doesn't repeat a prompt (`echo`), so it can't be seen whether its tokenizer is that of "
                    f"{self._folder}; servers need vLLM 0.10.2 or later, or what gives the same"
                )
            raise UserError(
                f"{url}: the model {self.name} reads other text from token ids than {self._folder}, so they have different "
                "tokenizers; name the folder of the model that is served"
            )
        found = (echoed.get("logprobs") or {}).get("token_logprobs") or []
        logprobs = [float(value) for value in found[: len(self._ids)] if value is not None]
        if self._first is None:
            self._first = url, logprobs
        first, known = self._first
        if len(known) == len(logprobs) > 0 and np.mean(np.abs(np.subtract(known, logprobs))) > NOISE:
            raise UserError(
                f"engine.server.endpoints: {first} and {url} serve different models as {self.name}: their log-probabilities of "
                "the same text differ"
            )

    @cached_property
    def _tokenizer(self) -> ChatTokenizer:
        return ChatTokenizer(self._folder)

    @cached_property
    def _ids(self) -> list[int]:
        return self._tokenizer.encode(TEXT)

    @cached_property
    def _text(self) -> str:
        return self._tokenizer.decode_bytes(self._ids).decode(errors="replace")


def only_choice(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    """The completion in an answer. Raises UserError where there isn't one."""
    choices = answer.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise UserError("engine.server: an answer without a completion came back; is it an OpenAI-compatible server?")
    return choices[0]


def sample_of(choice: Mapping[str, Any], server: str = "engine.server") -> Sample:
    """A completion as a sample. Raises UserError where it lacks token ids or log-probabilities, naming `server`."""
    ids, logprobs = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
    if ids is None or logprobs is None:
        missing = "token ids (return_token_ids)" if ids is None else "log-probabilities (logprobs)"
        raise UserError(
            f"{server}: a response came without {missing}, and without them it can't be aligned with the student; servers "
            "need vLLM 0.10.2 or later, or what gives the same"
        )
    if len(ids) != len(logprobs):
        raise UserError(f"{server}: a response came with {len(ids)} token ids and {len(logprobs)} log-probabilities")
    finish_reason: Literal["stop", "length"] = "stop" if choice.get("finish_reason") == "stop" else "length"
    return Sample.of(ids, logprobs, finish_reason)

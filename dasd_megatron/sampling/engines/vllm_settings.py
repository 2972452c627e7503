"""How vLLM runs a model, in a step's own process and as a server alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dasd_megatron.config.sampling import EngineConfig
from dasd_megatron.sampling.engines.engine import TOP


def vllm_environment(config: EngineConfig) -> dict[str, str]:
    """What has to be in the environment before vLLM is imported."""
    return {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        # Threads bound to cores fight with a neighbouring replica.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": str(config.cpu_kv_cache_gib),
    }


def vllm_settings(model: Path, config: EngineConfig) -> dict[str, Any]:
    """vLLM's settings of an engine, by the names that `vllm.LLM` gives them."""
    import torch

    on_gpu = torch.cuda.is_available()
    return {
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
        # Of a prompt's responses the first alone computes it, and turns read on where they stopped. In fp32 on a CPU no bit
        # differs (test_engines.py); elsewhere numbers shift by rounding with whatever is in the batch, anyhow.
        "enable_prefix_caching": True,
        "enforce_eager": not on_gpu,
        # A prompt split over two batches makes a seeded request rewind its generator, which CPU generators can't do.
        "enable_chunked_prefill": on_gpu,
        "use_tqdm_on_load": False,
        "generation_config": "vllm",  # nothing from the model folder: the recipe says it all
    }


def vllm_arguments(model: Path, config: EngineConfig) -> list[str]:
    """The same as arguments of vLLM's server."""
    arguments = []
    for name, value in vllm_settings(model, config).items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            arguments.append(f"--{flag}" if value else f"--no-{flag}")
        elif value is not None:
            arguments += [f"--{flag}", str(value)]
    return [*arguments, *config.server.arguments]

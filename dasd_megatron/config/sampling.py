"""Engines and how the teacher is sampled: `engine`, `sampling`."""

from __future__ import annotations

from typing import Literal

from dasd_megatron.config.base import Config, ExecutionOnly, Positive, Probability


class EngineConfig(Config):
    """What samples and scores."""

    name: str = "vllm"
    """`vllm`, `transformers` (the reference), or one that a plugin registers."""

    # The settings below that aren't part of a result shift numbers by rounding at most.
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of weights and activations: float32 where results are compared; bfloat16 noise is about 0.03 nats a token."""

    tensor_parallel: ExecutionOnly[Positive] = 1
    """GPUs of one engine."""

    max_length: Positive | None = None
    """Longest prompt and response together, in tokens; the model's own limit by default. A lower one saves KV cache."""

    max_batch: ExecutionOnly[Positive] = 256
    """Sequences decoded together in one engine."""

    gpu_memory_utilization: ExecutionOnly[Probability] = 0.9
    """Share of a GPU's memory for weights and KV cache."""

    prefix_caching: ExecutionOnly[bool] = False
    """vLLM keeps the KV cache of earlier prompts. Off, for a cached prefix shifts numbers by rounding, and which one is cached
    depends on what was sampled before; on where teacher and student take turns."""

    cpu_kv_cache_gib: ExecutionOnly[Positive] = 1
    """KV cache on a machine without a GPU."""


class SamplingConfig(Config):
    """How the teacher answers. The paper samples several responses a question; it does not say how many."""

    responses_per_prompt: Positive = 4
    """Candidates of each prompt."""

    max_tokens: Positive = 65_536
    """Longest response; a longer one is truncated, and dropped by the filters."""

    top_p: Probability = 1.0
    """Nucleus sampling; 1 samples from the whole distribution."""

    prompts_per_shard: Positive = 256
    """A shard is what a killed run loses at most, and what replicas share out."""

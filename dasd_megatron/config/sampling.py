"""Engines and how the teacher is sampled: `engine`, `sampling`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, get_args
from urllib.parse import urlsplit

from pydantic import AfterValidator, model_validator

from dasd_megatron.config.base import Config, ExecutionOnly, Overrides, Positive, Probability, overrides_of


def _is_address(text: str) -> str:
    parts = urlsplit(text)
    try:
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # of the port
        whole = False
    if not whole or any(character.isspace() for character in text):
        raise ValueError("an address begins with http:// or https:// and names a host, such as http://node7:8000/v1")
    return text


class ServerConfig(Config):
    """OpenAI-compatible servers that run the model, vLLM's above all: `vllm serve MODEL --logprobs-mode raw_logprobs`.

    The model folder is needed here, too, without its weights where servers run elsewhere: its tokenizer and chat template make
    the prompts, whose token ids are sent. Servers must return token ids and log-probabilities.
    """

    endpoints: list[Annotated[str, AfterValidator(_is_address)]] = []
    """Their addresses, `http://node7:8000/v1`. A request goes to the one that has fewest, and to another if that one fails. A
    step that uses them needs no GPU. Where there are none, each replica starts a vLLM server of its own, on its own GPUs, and
    ends it."""

    arguments: list[str] = []
    """More arguments for the servers that replicas start, as `vllm serve` has them: `[--kv-cache-dtype, fp8]`."""

    model: str | None = None
    """The name that they serve the model by; needed where they serve several."""

    api_key_variable: str | None = None
    """Environment variable that holds the key, where those of `endpoints` ask for one. The key itself is written nowhere."""

    timeout: Positive = 7200
    """Seconds that a response may take, before another server is asked for it."""

    patience: Positive = 600
    """Seconds without an answer from any of them, at the start as later, before the step gives up."""


class MegatronScorerConfig(Config):
    """The model as training runs it, for scoring alone: whole documents in packs, in the layout below, and never all logits.

    `engine.tensor_parallel` splits its matrices; the GPUs of one engine are tensor_parallel x context x pipeline.
    """

    context: Positive = 1
    """Splits every document, for documents that are too long for one GPU."""

    pipeline: Positive = 1
    """Splits the layers into stages."""

    expert: Positive = 1
    """Splits the experts over the GPUs that share a stage; adds none."""

    pack_tokens: Positive = 16_384
    """Documents are scored together up to this number of tokens; a longer one is scored alone."""


class EngineConfig(Config):
    """What samples and scores."""

    name: str = "vllm"
    """`vllm` in the step's own processes, `server`, `transformers` (the reference), or one that a plugin registers; to score with
    also `megatron`, the model as training runs it."""

    server: ExecutionOnly[ServerConfig] = ServerConfig()
    """Of `name: server`: the servers. `max_batch` is how many requests each of them gets at a time."""

    megatron: ExecutionOnly[MegatronScorerConfig] = MegatronScorerConfig()
    """Of `name: megatron`: its layout and packs."""

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

    cpu_kv_cache_gib: ExecutionOnly[Positive] = 1
    """KV cache on a machine without a GPU."""

    @property
    def runs_elsewhere(self) -> bool:
        """Whether it is servers that are there already."""
        return self.name == "server" and bool(self.server.endpoints)

    @property
    def gpus(self) -> int:
        """Of one engine."""
        split = self.megatron.context * self.megatron.pipeline if self.name == "megatron" else 1
        return self.tensor_parallel * split


if TYPE_CHECKING:
    EngineOverrides = Overrides
else:
    EngineOverrides = overrides_of(EngineConfig)

# What an engine's model does in a run.
EngineRole = Literal["teacher", "student", "scorer"]


class EnginesConfig(EngineConfig):
    """What samples and scores: the settings of all engines, and those that differ for one role.

    A teacher that takes eight GPUs needs no student that does: `{tensor_parallel: 8, student: {tensor_parallel: 1}, scorer:
    {tensor_parallel: 1}}`.
    """

    teacher: EngineOverrides = EngineOverrides()
    """Keys of `engine` that differ where the teacher writes: its responses, continuations and evaluation."""

    student: EngineOverrides = EngineOverrides()
    """Keys of `engine` that differ where the student writes: its answers in mixed policy, and evaluation."""

    scorer: EngineOverrides = EngineOverrides()
    """Keys of `engine` that differ where the student scores the teacher's responses."""

    @model_validator(mode="after")
    def _endpoints_are_used(self) -> EnginesConfig:
        used = any(self.of(role).runs_elsewhere for role in get_args(EngineRole))
        given = [self.server, *(self.of(role).server for role in get_args(EngineRole))]
        if any(server.endpoints for server in given) and not used:
            raise ValueError(
                "server.endpoints: no engine asks them; set engine.name=server, or for one role engine.teacher.name=server"
            )
        return self

    def of(self, role: EngineRole) -> EngineConfig:
        """The settings of a role's engine."""
        overrides: Overrides = getattr(self, role)
        return overrides.applied_to(EngineConfig(**{name: getattr(self, name) for name in EngineConfig.model_fields}))


class SamplingConfig(Config):
    """How the teacher answers. The paper samples several responses a question; it does not say how many."""

    responses_per_prompt: Positive = 4
    """Candidates of each prompt."""

    max_tokens: Positive = 65_536
    """Longest response; a longer one is truncated, and dropped by the filters."""

    top_p: Probability = 1.0
    """Nucleus sampling; 1 samples from the whole distribution."""

    prompts_per_shard: Positive = 64
    """A shard is what replicas share out, and a file. At the end of a step some engines wait for others to do their last shard:
    the smaller, the shorter (`python -m benchmarks.sampling`)."""

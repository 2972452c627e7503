#!/usr/bin/env python
"""How much of an engine's time sampling uses: vLLM on this machine, and 32 engines by simulation at the paper's lengths.

1. A model with random weights, one of whose steps takes about as long as one of a large model on GPUs (tens of milliseconds),
   writes responses of lengths with a long tail through the sampling step (leases, journals, shards on disk), and through vLLM
   itself, which is given all requests at once; also shard by shard, the engine drained after each. Each way runs in a process
   of its own, in turns; times are from the first request to the last shard on disk, loading left out.
2. Engines that write the high-temperature responses of examples/dasd_4b: gpt-oss-120b on two H100 each, by the plan's model of
   decoding (weights and KV caches read once a step). Shares are of an ideal: every engine at its best all the time.

The last line is JSON.

example:
  python -m benchmarks.sampling --rounds 3
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from dasd_megatron.artifacts.writer import ArtifactWriter
from dasd_megatron.config.sampling import EngineConfig
from dasd_megatron.runtime.shard_queue import LeasedShards
from dasd_megatron.sampling.engine_step import EngineStepConfig, EngineWork
from dasd_megatron.sampling.engines.engine import Request, Sample, generate_all
from dasd_megatron.sampling.engines.registry import load_engine
from dasd_megatron.sampling.sampling_step import SamplingStepKind, SamplingWork, ShardItems, response_items
from dasd_megatron.steps.cost_estimate import InputEstimates, model_shape
from dasd_megatron.steps.step import StepContext
from dasd_megatron.tokenization.tokenizer import ChatTokenizer
from tests.conftest import TOY

# The toy teacher's tokenizer, and a model of 30M parameters.
TOKENIZER = TOY / "teacher"
SIZE: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
    "layer_types": ["full_attention"] * 8,
    "max_position_embeddings": 2048,
}
WAYS = ("vllm", "step", "shard_by_shard")
PROMPT = "3*4+1?"
MEAN_LENGTH, LONGEST = 150, 600
# Of a simulated engine.
GPUS = 2
# sigma of a lognormal distribution whose spread (mean square by squared mean) is 1.8: exp(sigma^2).
SIGMA = math.sqrt(math.log(1.8))


def lengths_of(count: int, mean: float, longest: int, seed: int = 0) -> list[int]:
    """Lengths of responses with the paper's spread."""
    drawn = np.random.default_rng(seed).lognormal(math.log(mean) - SIGMA**2 / 2, SIGMA, count)
    return [int(length) for length in np.clip(drawn, 1, longest)]


class LongTailStep(SamplingStepKind[EngineStepConfig]):
    """Responses that end at given lengths."""

    name = "long_tail"

    def __init__(self, requests: Sequence[Request], by_shard: int, tokenizer: ChatTokenizer, engine: Any) -> None:
        self._requests, self._by_shard, self._tokenizer, self._engine = requests, by_shard, tokenizer, engine

    def shard_count(self, context: StepContext[EngineStepConfig]) -> int:
        return math.ceil(len(self._requests) / self._by_shard)

    def load(self, context: StepContext[EngineStepConfig]) -> SamplingWork[Request, Sample]:
        def items(shard: int) -> ShardItems[Request, Sample]:
            requests = self._requests[shard * self._by_shard : (shard + 1) * self._by_shard]
            rows = [{"uuid": f"{shard}-{n}", "sample_index": 0, "input": PROMPT} for n in range(len(requests))]
            return response_items(rows, requests, self._tokenizer)

        return SamplingWork(self._engine.generate, self._engine.tokens_in_flight, items)

    def summarize(self, context: StepContext[EngineStepConfig]) -> dict[str, Any]:
        return {}

    def work(self, config: EngineStepConfig, inputs: InputEstimates) -> EngineWork:
        return EngineWork()


def random_model(folder: Path) -> Path:
    """A model folder."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    shutil.copytree(TOKENIZER, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(str(TOKENIZER), **SIZE)).save_pretrained(folder)
    return folder


def run_way(way: str, model: Path, responses: int, by_shard: int, batch: int) -> float:
    """Seconds that all responses take, in this process."""
    tokenizer = ChatTokenizer(TOKENIZER)
    engine = load_engine(model, EngineConfig(name="vllm", dtype="float32", max_batch=batch))
    lengths = lengths_of(responses, MEAN_LENGTH, LONGEST)
    requests = [Request(tokenizer.prompt_ids(PROMPT), n, length, 1.0, 1.0, []) for n, length in enumerate(lengths)]
    generate_all(engine, requests[:batch])  # warm
    start = time.monotonic()
    if way == "vllm":
        _raw(engine, requests)
    else:
        with tempfile.TemporaryDirectory() as name:
            context = StepContext("long_tail", EngineStepConfig(), {}, ArtifactWriter(Path(name) / "step", {}))
            step = LongTailStep(requests, by_shard, tokenizer, engine)
            if way == "step":
                step.do_shards(context, LeasedShards(step, context))
            else:
                items = step.load(context).open
                for shard in range(step.shard_count(context)):
                    content = items(shard)
                    rows = content.rows(range(len(content.items)), generate_all(engine, content.items))
                    context.output.write_shard("responses", shard, rows)
            assert len(step.pending(context)) == 0
    return time.monotonic() - start


def _raw(engine: Any, requests: Sequence[Request]) -> None:
    """vLLM's own loop, with the same parameters."""
    from vllm import TokensPrompt

    prompts = [TokensPrompt(prompt_token_ids=list(request.prompt_ids)) for request in requests]
    outputs = engine._llm.generate(prompts, [engine._sampling(request) for request in requests], use_tqdm=False)
    assert len(outputs) == len(requests)


def measure(model: Path, rounds: int, responses: int, by_shard: int, batch: int) -> dict[str, float]:
    """Tokens/s of vLLM itself, and each way's share of it: medians of rounds."""
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(rounds):
        for way in WAYS:
            command = [sys.executable, "-m", "benchmarks.sampling", "--way", way, "--responses", str(responses)]
            command += ["--by-shard", str(by_shard), "--batch", str(batch), "--model", str(model)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            seconds[way].append(json.loads(done.stdout.splitlines()[-1])["seconds"])
            print(f"{way:>15} {seconds[way][-1]:.1f} s", flush=True)
    tokens = sum(lengths_of(responses, MEAN_LENGTH, LONGEST))
    shares = {
        way: round(median(a / b for a, b in zip(seconds["vllm"], seconds[way], strict=True)), 3) for way in WAYS[1:]
    }
    return {"tokens_per_second": round(tokens / median(seconds["vllm"])), **shares}


@dataclass(frozen=True)
class Decoding:
    """An engine by the plan's model: seconds of a step with `batch` sequences are weights + batch * cache."""

    slots: int
    weights: float
    cache: float

    def seconds(self, batch: int) -> float:
        """Of a step."""
        return self.weights + batch * self.cache

    @property
    def best(self) -> float:
        """Tokens/s with all slots taken."""
        return self.slots / self.seconds(self.slots)


class SimulatedEngine:
    """Takes responses from shards that it claims, as the sampling step does."""

    def __init__(self, decoding: Decoding, drains: bool) -> None:
        self._decoding, self._drains = decoding, drains
        self.time = 0.0
        # Steps taken, and at which step each active response will end.
        self._steps = 0
        self._active: list[int] = []
        self._waiting: list[int] = []

    def run_until_it_wants_a_shard(self) -> None:
        """Decodes for as long as every slot is taken, or, if it drains, to the last response."""
        while self._waiting or (self._drains and self._active) or len(self._active) >= self._decoding.slots:
            self._fill()
            self._advance()
            if not self._drains and not self._waiting and len(self._active) < self._decoding.slots:
                return

    def give(self, lengths: list[int]) -> None:
        """A shard's responses."""
        self._waiting.extend(lengths)
        self._fill()

    def finish(self) -> float:
        """Decodes what is left; returns the time at the end."""
        while self._waiting or self._active:
            self._fill()
            self._advance()
        return self.time

    def _fill(self) -> None:
        while self._waiting and len(self._active) < self._decoding.slots:
            heapq.heappush(self._active, self._steps + self._waiting.pop())

    def _advance(self) -> None:
        """To the end of the next response."""
        end = heapq.heappop(self._active)
        self.time += (end - self._steps) * self._decoding.seconds(len(self._active) + 1)
        self._steps = end


def simulate(
    decoding: Decoding, engines: int, responses: int, by_shard: int, mean: float, longest: int, drains: bool
) -> float:
    """Share of the engines' time, from the first response to the last one's end, that the ideal would take."""
    lengths = lengths_of(responses, mean, longest)
    shards = [lengths[start : start + by_shard] for start in range(0, responses, by_shard)]
    # Whoever wants a shard first gets the next one.
    queue = [(0.0, number) for number in range(engines)]
    simulated = [SimulatedEngine(decoding, drains) for _ in range(engines)]
    while shards:
        _, number = heapq.heappop(queue)
        simulated[number].give(shards.pop())
        simulated[number].run_until_it_wants_a_shard()
        heapq.heappush(queue, (simulated[number].time, number))
    end = max(engine.finish() for engine in simulated)
    return sum(lengths) / decoding.best / engines / end


def teacher_decoding(mean: float) -> Decoding:
    """gpt-oss-120b as examples/dasd_4b runs it."""
    from dasd_megatron.config.expected import ExpectedConfig
    from dasd_megatron.config.gpu_specs import GIB, GPU_SPECS
    from dasd_megatron.sampling.decoding_speed import cache_bytes, weight_bytes
    from tests.helpers.published_models import published_model

    with tempfile.TemporaryDirectory() as name:
        folder = published_model(Path(name), "gpt-oss-120b")
        shape, engine = model_shape(folder), EngineConfig(tensor_parallel=GPUS)
        weights = weight_bytes(folder, shape, engine)
    expected = ExpectedConfig()
    cache = cache_bytes(shape, engine, expected.prompt_tokens + expected.length_spread * mean / 2)
    gpu = GPU_SPECS["h100"]
    room = GPUS * gpu.memory_gib * GIB * engine.gpu_memory_utilization - weights
    speed = GPUS * gpu.bandwidth * expected.mbu
    return Decoding(int(min(engine.max_batch, room // cache)), weights / speed, cache / speed)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--responses", type=int, default=800)
    parser.add_argument("--by-shard", type=int, default=64, help="responses of a shard")
    parser.add_argument("--batch", type=int, default=32, help="responses that vLLM decodes together")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.way:
        print(json.dumps({"seconds": run_way(args.way, args.model, args.responses, args.by_shard, args.batch)}))
        return
    with tempfile.TemporaryDirectory() as name:
        model = random_model(Path(name) / "model")
        on_cpu = measure(model, args.rounds, args.responses, args.by_shard, args.batch)
    found: dict[str, Any] = {"vllm_on_cpu": on_cpu}
    decoding = teacher_decoding(17_600)
    print(f"simulated engine: {decoding.slots} slots, {decoding.best:,.0f} tokens/s")
    found["simulated"] = {}
    for prompts in (32, 64, 128, 256, 512):
        shares = {
            name: round(simulate(decoding, 32, 1_320_000, 4 * prompts, 17_600, 65_536, drains), 4)
            for name, drains in (("step", False), ("shard_by_shard", True))
        }
        print(f"{prompts:>6} prompts a shard: {shares}", flush=True)
        found["simulated"][prompts] = shares
    print(json.dumps(found))


if __name__ == "__main__":
    main()

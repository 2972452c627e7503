#!/usr/bin/env python
"""Tokens/s of scoring: Megatron with packs and a chunked head, and vLLM's `prompt_logprobs`, on the same model and documents.

1. A random Qwen3 with a real vocabulary scores documents of lengths with a long tail, with each engine in a process of its own,
   in turns. Times are from the first document to the last score, loading left out (it is reported beside); medians of rounds.
   Tokens by CPU seconds of the engine's processes depend less on what else runs.
   What the engines say of the tokens is compared.
2. One long document, scored with Megatron: the peak memory of all processes of the engine (on GPUs, what they have taken).

The last line is JSON.

examples:
  python -m benchmarks.scoring
  python -m benchmarks.scoring --model examples/toy/student --documents 2000 --mean 128 --longest 300 --long 0
  python -m benchmarks.scoring --size 4B --dtype bfloat16 --mean 17600 --longest 65536 --documents 64 --long 65536
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from dasd_megatron.config.sampling import EngineConfig
from dasd_megatron.models.hf_config import positive_int, read_config
from dasd_megatron.sampling.engines.engine import TokenScores
from dasd_megatron.sampling.engines.registry import load_engine

ENGINES = ("megatron", "vllm", "transformers")
VOCABULARY = 151_936
SIZES: dict[str, dict[str, Any]] = {
    "small": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4},
    "medium": {
        "hidden_size": 512,
        "intermediate_size": 1536,
        "num_hidden_layers": 8,
        "num_attention_heads": 8,
        "head_dim": 64,
    },
    "0.6B": {
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
    "4B": {
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
}


def random_folder(folder: Path, size: str, dtype: str) -> Path:
    """A model folder with random weights, tied as Qwen3's small models are; no tokenizer is needed."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from benchmarks.models import qwen3

    fields = {"vocab_size": VOCABULARY, "tie_word_embeddings": True, **SIZES[size]}
    config = AutoConfig.from_pretrained(str(qwen3(folder, **fields).folder))
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    return folder


def documents_of(lengths: list[int], model: Path) -> list[list[int]]:
    """Random tokens of the model's vocabulary."""
    random, vocabulary = np.random.default_rng(0), positive_int(read_config(model), model, "vocab_size")
    return [random.integers(0, vocabulary, length).tolist() for length in lengths]


def engine_config(args: argparse.Namespace, longest: int) -> EngineConfig:
    """The engine that the arguments ask for."""
    return EngineConfig(
        name=args.engine, dtype=args.dtype, tensor_parallel=args.tensor_parallel, max_length=longest + 2, max_batch=64
    )


def run_engine(args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of loading and scoring, in this process; the log-probabilities go to a file."""
    documents = documents_of(args.lengths, args.model)
    start = time.monotonic()
    engine = load_engine(args.model, engine_config(args, max(args.lengths)))
    loaded = time.monotonic()
    engine.score(documents_of([8, 64], args.model), args.brier)  # warm
    begin, worked = time.monotonic(), cpu_seconds()
    scores: list[TokenScores] = engine.score(documents, args.brier)
    seconds, worked = time.monotonic() - begin, cpu_seconds() - worked
    np.save(args.scores, np.concatenate([score.logprobs for score in scores]))
    return {"seconds": seconds, "cpu_seconds": worked, "load_seconds": loaded - start, "peak_gib": peak_gib()}


def processes() -> list[Any]:
    """This process and its children, as psutil has them."""
    import psutil

    me = psutil.Process()
    return [me, *me.children(recursive=True)]


def cpu_seconds() -> float:
    """That the engine's processes have worked; of use where other programs share the cores."""
    return sum(sum(process.cpu_times()[:2]) for process in processes())


def peak_gib() -> float:
    """Memory taken on all GPUs of the engine; without any, the peak resident memory of this process and of its children."""
    import torch

    if torch.cuda.is_available():
        free = [torch.cuda.mem_get_info(gpu) for gpu in range(torch.cuda.device_count())]
        return sum(total - left for left, total in free) / 2**30
    kib = 0
    for process in processes():
        status = Path(f"/proc/{process.pid}/status").read_text()
        found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
        kib += int(found[1]) if found else 0
    return kib / 2**20


def in_a_process(
    args: argparse.Namespace, engine: str, model: Path, lengths: list[int], scores: Path
) -> dict[str, Any]:
    """What `run_engine` finds, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scoring", "--engine", engine, "--model", str(model)]
    command += ["--dtype", args.dtype, "--tensor-parallel", str(args.tensor_parallel), "--scores", str(scores)]
    command += [*(["--brier"] if args.brier else []), "--lengths", *map(str, lengths)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(args: argparse.Namespace, model: Path, folder: Path) -> dict[str, Any]:
    """Tokens/s of each engine, and how far its log-probabilities are from the first one's."""
    from benchmarks.sampling import lengths_of

    lengths = [max(2, length) for length in lengths_of(args.documents, args.mean, args.longest)]
    found: dict[str, list[dict[str, Any]]] = {engine: [] for engine in args.engines}
    for _ in range(args.rounds):
        for engine in args.engines:
            of_round = in_a_process(args, engine, model, lengths, folder / f"{engine}.npy")
            found[engine].append(of_round)
            rates = [sum(lengths) / of_round[key] for key in ("seconds", "cpu_seconds")]
            print(f"{engine:>13} {rates[0]:>9,.0f} tokens/s {rates[1]:>9,.0f} tokens/CPU second", flush=True)
    first = np.load(folder / f"{args.engines[0]}.npy")
    return {
        "documents": len(lengths),
        "tokens": sum(lengths),
        **{
            engine: {
                "tokens_per_second": round(sum(lengths) / median(of_round["seconds"] for of_round in rounds)),
                "tokens_per_cpu_second": round(sum(lengths) / median(of_round["cpu_seconds"] for of_round in rounds)),
                "load_seconds": round(median(of_round["load_seconds"] for of_round in rounds), 1),
                "peak_gib": round(max(of_round["peak_gib"] for of_round in rounds), 2),
                "largest_difference": float(np.abs(np.load(folder / f"{engine}.npy") - first).max()),
            }
            for engine, rounds in found.items()
        },
    }


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--engines", nargs="*", choices=ENGINES, default=["megatron", "vllm"], help="to compare")
    parser.add_argument("--tensor-parallel", type=int, default=1)
    parser.add_argument("--documents", type=int, default=48)
    parser.add_argument("--mean", type=int, default=300, help="tokens of a document")
    parser.add_argument("--longest", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--brier", action="store_true", help="with Brier scores")
    parser.add_argument("--long", type=int, default=32_768, help="tokens of the long document; 0: none")
    parser.add_argument("--model", type=Path, help="a model folder, in place of a random model")
    for hidden in ("--engine", "--scores", "--lengths"):
        kind: Any = {"--engine": str, "--lengths": int}.get(hidden, Path)
        parser.add_argument(hidden, type=kind, nargs="+" if hidden == "--lengths" else None, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Entry point."""
    args = parse()
    if args.engine:
        print(json.dumps(run_engine(args)))
        return
    result: dict[str, Any] = {"model": str(args.model or args.size), "dtype": args.dtype}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = args.model or random_folder(folder / "model", args.size, args.dtype)
        if args.engines:
            result["compared"] = compare(args, model, folder)
        if args.long:
            found = in_a_process(args, "megatron", model, [args.long], folder / "long.npy")
            print(
                f"one document of {args.long:,} tokens: {found['seconds']:.1f} s, {found['peak_gib']:.2f} GiB",
                flush=True,
            )
            result["long"] = {"tokens": args.long, **{key: round(value, 2) for key, value in found.items()}}
    print(json.dumps(result))


if __name__ == "__main__":
    main()

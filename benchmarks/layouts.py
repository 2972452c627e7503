#!/usr/bin/env python
"""Seconds of a step by how context parallelism splits and exchanges, and by what of experts is computed again.

1. A dense model with Qwen3-4B's layers: every size of context parallelism that the ranks allow, data parallelism for the rest,
   keys and values around a ring (p2p) or tokens for heads (a2a).
2. Experts as in Qwen3-30B-A3B, split over all ranks: nothing computed again, the experts (selective), or whole layers (full).

Each layout is a torchrun of its own. The last line is JSON.

example:
  python -m benchmarks.layouts --ranks 8
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.ranks import torchrun
from dasd_megatron.config.training import MemoryConfig, ParallelConfig

ATTENTION = {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
DENSE = {"hidden_size": 2560, "intermediate_size": 9728, "vocab_size": 151_936, **ATTENTION}
EXPERTS = {
    **ATTENTION,
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "moe_intermediate_size": 768,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_key_value_heads": 4,
    "norm_topk_prob": True,
    "vocab_size": 151_936,
}
# Widths for a CPU.
TINY = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 128,
}
FEW_EXPERTS = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}


def layouts(ranks: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names, and what a rank is told."""
    for context in [size for size in (1, 2, 4, 8) if ranks % size == 0]:
        for exchange in ("p2p", "a2a") if context > 1 else ("p2p",):
            parallel = {"context": context, "context_comm": exchange, "data": ranks // context}
            yield f"context={context} {exchange}", {"experts": False, "parallel": parallel, "recompute": "full"}
    for recompute in ("none", "selective", "full"):
        parallel = {"data": ranks, "expert": ranks}
        yield f"experts, recompute={recompute}", {"experts": True, "parallel": parallel, "recompute": recompute}


def rank(folder: Path, told: dict[str, Any]) -> None:
    """One rank: steps at each length; the first of them writes the numbers."""
    import torch
    import torch.distributed as dist

    from benchmarks.models import qwen3, random_model, random_pack
    from dasd_megatron.config.training import TrainingConfig
    from dasd_megatron.megatron_model.build_model import ModelOptions
    from dasd_megatron.megatron_model.process_groups import process_groups
    from dasd_megatron.training.device_stats import memory_gib
    from dasd_megatron.training.trainer import Trainer

    parallel, memory = ParallelConfig(**told["parallel"]), MemoryConfig(recompute=told["recompute"])
    training = TrainingConfig(precision="bf16", global_batch=parallel.data)
    rows = []
    with process_groups(parallel, 0):
        fields = {**(EXPERTS if told["experts"] else DENSE), "num_hidden_layers": told["layers"]}
        if told["tiny"]:
            fields |= {**TINY, **(FEW_EXPERTS if told["experts"] else {})}
        hf = qwen3(folder / f"hf-{dist.get_rank()}", **fields)
        chunks = random_model(hf, ModelOptions.of(training, memory), max(told["lengths"]), parallel)
        trainer = Trainer(chunks, hf, parallel, training, memory)
        for length in told["lengths"]:
            pack = random_pack([length], hf.shape.vocabulary, dist.get_rank() // parallel.context)
            times = []
            for _ in range(told["steps"] + 1):
                dist.barrier()
                start = time.monotonic()
                trainer.step([pack], 1e-5).read()
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                times.append(time.monotonic() - start)
            seconds = statistics.median(times[1:])  # the first warms up
            by_gpu = length * parallel.data / seconds / parallel.world_size
            row = {"tokens": length, "ms": 1e3 * seconds, "tokens_per_second_a_gpu": by_gpu, "gib": memory_gib()}
            rows.append(row)
        if dist.get_rank() == 0:
            (folder / "rows.json").write_text(json.dumps(rows))


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=1, help="as many as there are GPUs")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--lengths", type=int, nargs="+", default=[32_768, 65_536])
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="widths for a CPU")
    parser.add_argument("--rank", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank:
        rank(Path(args.rank[0]), json.loads(args.rank[1]))
        return 0
    rows = []
    for name, told in layouts(args.ranks):
        told |= {"layers": args.layers, "lengths": args.lengths, "steps": args.steps, "tiny": args.tiny}
        with tempfile.TemporaryDirectory() as folder:
            torchrun(args.ranks, "benchmarks.layouts", "--rank", folder, json.dumps(told))
            found = json.loads((Path(folder) / "rows.json").read_text())
        for row in found:
            rows.append({"layout": name, **row})
            print(f"{name:28} {row['tokens']:>7,} tokens {row['ms']:>10,.1f} ms {row['gib']:6.1f} GiB", flush=True)
    print(json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python
"""Memory that training steps take on this CPU, beside what the estimate says, for three sizes of model.

Each size runs in a process of its own: peak resident memory above what Python, torch and Megatron take.

example:
  python benchmarks/memory.py
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

# Name -> fields of the config, and tokens of a pack.
SIZES: dict[str, tuple[dict[str, Any], int]] = {
    "10M": ({"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 8, "vocab_size": 8192}, 8192),
    "50M": ({"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12, "vocab_size": 16384}, 4096),
    "150M": ({"hidden_size": 768, "intermediate_size": 2304, "num_hidden_layers": 16, "vocab_size": 32768}, 2048),
}


def measure(name: str) -> dict[str, float]:
    """Bytes that two training steps took, and the estimate by part."""
    from benchmarks.models import qwen3, random_model, random_pack
    from dasd_megatron.config.training import MemoryConfig, ParallelConfig, TrainingConfig
    from dasd_megatron.megatron_model.build_model import ModelOptions
    from dasd_megatron.megatron_model.process_groups import process_groups
    from dasd_megatron.planning.memory_estimate import rank_memory
    from dasd_megatron.training.device_stats import peak_resident_bytes
    from dasd_megatron.training.trainer import Trainer

    fields, tokens = SIZES[name]
    training = TrainingConfig(precision="fp32", global_batch=1)
    documents = [tokens // 2, tokens // 4, tokens // 8, tokens // 8]
    with tempfile.TemporaryDirectory() as folder, process_groups(ParallelConfig(), 0):
        hf = qwen3(Path(folder), **fields)
        before = peak_resident_bytes()
        trainer = Trainer(random_model(hf, ModelOptions(), tokens), hf, ParallelConfig(), training, MemoryConfig())
        for seed in range(2):
            trainer.step([random_pack(documents, fields["vocab_size"], seed)], lr=1e-5).read()
        measured = peak_resident_bytes() - before
        estimate = rank_memory(hf.shape, ParallelConfig(), training, MemoryConfig(), tokens, "cpu")
    return {"measured": measured, "estimated": estimate.total, **vars(estimate)}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, help="this one alone, as JSON")
    args = parser.parse_args()
    if args.size:
        print(json.dumps(measure(args.size)))
        return
    parts = ("weights", "gradients", "optimizer", "activations", "logits")
    print(
        f"{'size':>6} {'parameters':>12} {'measured':>9} {'estimated':>9} {'ratio':>6}   "
        + "  ".join(parts)
        + "   (GiB)"
    )
    for name in SIZES:
        command = [sys.executable, "-m", "benchmarks.memory", "--size", name]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        by_part = "  ".join(f"{found[part] / 2**30:{len(part)}.2f}" for part in parts)
        print(
            f"{name:>6} {found['parameters']:>12,.0f} {found['measured'] / 2**30:>9.2f} {found['estimated'] / 2**30:>9.2f} "
            f"{found['estimated'] / found['measured']:>6.2f}   {by_part}"
        )


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""Time of a training step beside plain transformers with the same model, on this CPU, fp32, side by side.

Both take the same packed documents: here as one pack, there as right-padded batch rows of one document each, which is how
transformers keeps documents apart; AdamW on both sides. Steps alternate, so that both see the same machine.

examples:
  python -m benchmarks.step_overhead
  python -m benchmarks.step_overhead --steps 5 --tokens 2048
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.models import qwen3, random_model, random_pack
from dasd_megatron.config.training import MemoryConfig, ParallelConfig, TrainingConfig
from dasd_megatron.megatron_model.build_model import ModelOptions
from dasd_megatron.megatron_model.micro_batch import Pack
from dasd_megatron.megatron_model.process_groups import process_groups
from dasd_megatron.training.trainer import Trainer

SIZES: dict[str, dict[str, Any]] = {
    "0.5M": {"hidden_size": 96, "intermediate_size": 288, "num_hidden_layers": 4, "vocab_size": 512},
    "5M": {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4, "vocab_size": 4096},
    "50M": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 12, "vocab_size": 16384},
}


def transformers_step(folder: Path, pack: Pack) -> Callable[[], float]:
    """One step of plain transformers on the pack's documents; returns the loss."""
    model = AutoModelForCausalLM.from_config(
        AutoConfig.from_pretrained(str(folder)), attn_implementation="sdpa"
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    length = max(pack.lengths)
    ids = torch.zeros(len(pack.lengths), length, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    start = 0
    for row, size in enumerate(pack.lengths):
        document = torch.from_numpy(pack.ids[start : start + size]).long()
        ids[row, :size] = labels[row, :size] = document
        start += size

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        # Causal attention needs no mask where padding comes last, which is the fastest path transformers has.
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    return step


def compare(fields: dict[str, Any], documents: list[int], steps: int) -> tuple[int, float, float]:
    """Parameters, and median seconds of a step: ours, transformers'."""
    with tempfile.TemporaryDirectory() as folder:
        hf = qwen3(Path(folder), **fields)
        pack = random_pack(documents, fields["vocab_size"])
        training = TrainingConfig(precision="fp32", global_batch=1)
        chunks = random_model(hf, ModelOptions(), sum(documents))
        ours = Trainer(chunks, hf, ParallelConfig(), training, MemoryConfig())
        theirs = transformers_step(Path(folder), pack)
        times: tuple[list[float], list[float]] = ([], [])
        for number in range(steps + 1):
            for side, step in enumerate((lambda: ours.step([pack], 1e-5).read(), theirs)):
                start = time.monotonic()
                step()
                if number:  # the first warms up
                    times[side].append(time.monotonic() - start)
        parameters = sum(parameter.numel() for parameter in chunks[0].parameters())
    return parameters, statistics.median(times[0]), statistics.median(times[1])


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--tokens", type=int, default=1024, help="of a pack, in documents of equal length")
    parser.add_argument("--documents", type=int, default=4)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    documents = [args.tokens // args.documents] * args.documents
    print(f"{'size':>6} {'parameters':>12} {'Megatron ms':>12} {'transformers ms':>16} {'ratio':>6}")
    with process_groups(ParallelConfig(), 0):
        for name, fields in SIZES.items():
            parameters, ours, theirs = compare(fields, documents, args.steps)
            print(f"{name:>6} {parameters:>12,} {ours * 1e3:>12.1f} {theirs * 1e3:>16.1f} {ours / theirs:>6.2f}")


if __name__ == "__main__":
    main()

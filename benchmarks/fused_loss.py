#!/usr/bin/env python
"""Peak extra memory of head and cross-entropy, forward and backward, at long context; fused, and as plain PyTorch does it.

On a GPU torch's allocator is asked; on a CPU the process's peak resident memory, above what inputs and gradients take.

examples:
  python benchmarks/fused_loss.py
  python benchmarks/fused_loss.py --tokens 4096 --eager
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch

from dasd_megatron.config.training import ParallelConfig
from dasd_megatron.megatron_model.process_groups import process_groups
from dasd_megatron.training.device_stats import peak_resident_bytes
from dasd_megatron.training.fused_loss import loss_sum


def measure(tokens: int, vocabulary: int, hidden: int, eager: bool) -> dict[str, float]:
    """Loss, peak extra GiB and seconds of one forward and backward pass in fp32 on a CPU, bf16 on a GPU."""
    on_gpu = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
    generator = torch.Generator(device).manual_seed(0)
    options: dict[str, Any] = {"device": device, "dtype": dtype, "generator": generator}
    states = torch.randn(tokens, 1, hidden, **options).requires_grad_()
    weight = (torch.randn(vocabulary, hidden, **options) / hidden**0.5).requires_grad_()
    labels = torch.randint(0, vocabulary, (1, tokens), device=device, generator=generator)
    mask = torch.ones(1, tokens, device=device)
    states.grad, weight.grad = torch.zeros_like(states), torch.zeros_like(weight)  # not extra: any training has them
    before = _memory(on_gpu)
    start = time.monotonic()
    if eager:
        logits = (states[:, 0] @ weight.t()).float()
        loss = torch.nn.functional.cross_entropy(logits, labels[0], reduction="sum")
    else:
        loss = loss_sum(states, weight, labels, mask, vocabulary, sequence_parallel=False)
    torch.autograd.backward(loss)
    seconds = time.monotonic() - start if not on_gpu else _synchronized(start)
    return {
        "loss": float(loss.detach()) / tokens,
        "extra_gib": (_memory(on_gpu) - before) / 2**30,
        "seconds": seconds,
    }


def _memory(on_gpu: bool) -> int:
    """Peak so far, in bytes."""
    if on_gpu:
        return int(torch.cuda.max_memory_allocated())
    return peak_resident_bytes()


def _synchronized(start: float) -> float:
    torch.cuda.synchronize()
    return time.monotonic() - start


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=64, help="small: it adds no logits")
    parser.add_argument("--eager", action="store_true", help="as plain PyTorch does it")
    args = parser.parse_args()
    with process_groups(ParallelConfig(), seed=0):
        print(json.dumps(measure(args.tokens, args.vocabulary, args.hidden, args.eager)))


if __name__ == "__main__":
    main()

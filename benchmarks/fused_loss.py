#!/usr/bin/env python
"""Peak extra memory of head and cross-entropy, forward and backward, at long context; fused, and as plain PyTorch does it.

On a GPU torch's allocator is asked; on a CPU the process's peak resident memory, above what inputs and gradients take.
With --arithmetic nothing is measured: the time on an H100 by what each kernel computes and moves, against three ideal products.

examples:
  python benchmarks/fused_loss.py
  python benchmarks/fused_loss.py --tokens 4096 --eager
  python benchmarks/fused_loss.py --tokens 65536 --hidden 2560 --arithmetic
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch

from dasd_megatron.config.training import ParallelConfig
from dasd_megatron.megatron_model.process_groups import process_groups
from dasd_megatron.models.loss_tiles import tile_tokens
from dasd_megatron.training.cross_entropy import COLUMNS
from dasd_megatron.training.device_stats import peak_resident_bytes
from dasd_megatron.training.fused_loss import loss_sum

# Of an H100 SXM: FLOP/s that large products in bf16 reach, and bytes/s of its memory.
PRODUCTS, MEMORY = 600e12, 3.35e12


def measure(tokens: int, vocabulary: int, hidden: int, eager: bool) -> dict[str, float]:
    """Loss, peak extra GiB and seconds of one forward and backward pass in fp32 on a CPU, bf16 on a GPU.

    There a first pass warms up, and the time of three products of these sizes is beside it.
    """
    if not torch.cuda.is_available():
        return _measure_once(tokens, vocabulary, hidden, eager)
    _measure_once(tokens, vocabulary, hidden, eager)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    found = _measure_once(tokens, vocabulary, hidden, eager)
    ideal = _seconds_of_products(tokens, vocabulary, hidden)
    return {**found, "ideal_seconds": ideal, "times_ideal": found["seconds"] / ideal}


def _measure_once(tokens: int, vocabulary: int, hidden: int, eager: bool) -> dict[str, float]:
    on_gpu = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
    torch.manual_seed(0)
    options: dict[str, Any] = {"device": device, "dtype": dtype}
    states = torch.randn(tokens, 1, hidden, **options).requires_grad_()
    weight = (torch.randn(vocabulary, hidden, **options) / hidden**0.5).requires_grad_()
    labels = torch.randint(0, vocabulary, (1, tokens), device=device)
    targets = torch.arange(tokens, device=device)
    states.grad, weight.grad = torch.zeros_like(states), torch.zeros_like(weight)  # not extra: any training has them
    before = _memory(on_gpu)
    start = time.monotonic()
    if eager:
        logits = (states[:, 0] @ weight.t()).float()
        loss = torch.nn.functional.cross_entropy(logits, labels[0], reduction="sum")
    else:
        loss = loss_sum(states, weight, labels, targets, vocabulary, sequence_parallel=False)
    torch.autograd.backward(loss)
    seconds = time.monotonic() - start if not on_gpu else _synchronized(start)
    return {
        "loss": float(loss.detach()) / tokens,
        "extra_gib": (_memory(on_gpu) - before) / 2**30,
        "seconds": seconds,
    }


def _seconds_of_products(tokens: int, vocabulary: int, hidden: int) -> float:
    """Of the head's three matrix products in bf16, a part of the tokens at a time; the second time that they run."""
    part = min(tokens, 8192)
    options: dict[str, Any] = {"device": "cuda", "dtype": torch.bfloat16}
    states, weight = torch.randn(part, hidden, **options), torch.randn(vocabulary, hidden, **options)
    gradients = torch.randn(part, vocabulary, **options)
    for _ in range(2):
        torch.cuda.synchronize()
        start = time.monotonic()
        for _ in range(-(-tokens // part)):
            states @ weight.t(), gradients @ weight, gradients.t() @ states
        seconds = _synchronized(start)
    return seconds


def arithmetic(tokens: int, vocabulary: int, hidden: int) -> dict[str, float]:
    """Milliseconds on an H100, forward and backward: three ideal products; the kernels, each by the longer of computing and
    moving; and all of both one after the other, as if no product read while it computes. Caches don't count.
    """
    tiles, parts = -(-tokens // tile_tokens("gpu", vocabulary)), -(-vocabulary // COLUMNS)
    logits, weight, states = tokens * vocabulary, vocabulary * hidden, tokens * hidden
    flops = 2 * logits * hidden
    kernels = {  # FLOPs, and bytes: logits and sums in float32, all else in bf16
        "logits": (flops, 4 * logits + tiles * 2 * weight + 2 * states),
        "statistics": (0, 4 * logits),
        "gradients of logits": (0, (4 + 2) * logits),
        "gradients of states": (flops, 2 * logits + tiles * 2 * weight + parts * 8 * states),
        "gradients of weights": (flops, 2 * logits + parts * 2 * states + tiles * 8 * weight),
    }
    times = [(computed / PRODUCTS, moved / MEMORY) for computed, moved in kernels.values()]
    ideal, overlapped, apart = 3 * flops / PRODUCTS, sum(map(max, times)), sum(map(sum, times))
    return {
        "ideal_ms": 1e3 * ideal,
        "ms": 1e3 * overlapped,
        "times_ideal": overlapped / ideal,
        "times_ideal_without_overlap": apart / ideal,
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
    parser.add_argument("--arithmetic", action="store_true", help="measure nothing: count")
    args = parser.parse_args()
    if args.arithmetic:
        print(json.dumps(arithmetic(args.tokens, args.vocabulary, args.hidden)))
        return
    with process_groups(ParallelConfig(), seed=0):
        print(json.dumps(measure(args.tokens, args.vocabulary, args.hidden, args.eager)))


if __name__ == "__main__":
    main()

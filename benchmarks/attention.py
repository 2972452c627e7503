#!/usr/bin/env python
"""Speed of packed attention on a GPU, forward and backward, by backend and by the length of a pack's documents.

Each pack has the same number of tokens, in documents of one length; TFLOP/s count the causal half of each document's square.
Transformer Engine runs cuDNN's kernels or FlashAttention's, where that is installed. The last line is JSON.

examples:
  python -m benchmarks.attention
  python -m benchmarks.attention --tokens 32768 --documents 512 4096 32768 --heads 4 --groups 1
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import time
from typing import Any

import torch

# What chooses each backend.
BACKENDS = {
    "cudnn": {"NVTE_FUSED_ATTN": "1", "NVTE_FLASH_ATTN": "0", "NVTE_UNFUSED_ATTN": "0"},
    "flash": {"NVTE_FUSED_ATTN": "0", "NVTE_FLASH_ATTN": "1", "NVTE_UNFUSED_ATTN": "0"},
}


def installed(backend: str) -> bool:
    """Whether it can be used at all."""
    return backend != "flash" or any(map(importlib.util.find_spec, ("flash_attn", "flash_attn_3")))


def seconds(args: argparse.Namespace, backend: str, lengths: list[int]) -> float:
    """Median of a forward and backward pass."""
    import transformer_engine.pytorch as te
    from transformer_engine.pytorch.attention.dot_product_attention.dot_product_attention import _attention_backends

    os.environ |= BACKENDS[backend]
    _attention_backends["backend_selection_requires_update"] = True
    attention = te.DotProductAttention(
        args.heads, args.head_dim, args.groups, qkv_format="thd", attn_mask_type="padding_causal", attention_dropout=0.0
    )
    options: dict[str, Any] = {"dtype": torch.bfloat16, "device": "cuda", "requires_grad": True}
    tensors = [
        torch.randn(sum(lengths), heads, args.head_dim, **options) for heads in (args.heads, args.groups, args.groups)
    ]
    starts = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).cuda()
    settings = {"max_seqlen_q": max(lengths), "max_seqlen_kv": max(lengths)}
    times = []
    for _ in range(args.repeats + 1):
        torch.cuda.synchronize()
        start = time.monotonic()
        output = attention(*tensors, cu_seqlens_q=starts, cu_seqlens_kv=starts, **settings)
        torch.autograd.backward(output, torch.ones_like(output))
        torch.cuda.synchronize()
        times.append(time.monotonic() - start)
    return statistics.median(times[1:])  # the first builds a plan


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=65_536, help="of a pack")
    parser.add_argument("--documents", type=int, nargs="+", default=[1024, 4096, 16_384, 65_536], help="their lengths")
    parser.add_argument("--heads", type=int, default=32, help="of queries; by default Qwen3-4B's")
    parser.add_argument("--groups", type=int, default=8, help="heads of keys and values")
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    print(f"{'documents of':>13} {'backend':>8} {'ms':>9} {'TFLOP/s':>8}")
    found = []
    for length in args.documents:
        lengths = [length] * (args.tokens // length)
        # Scores and their product with values: forward, and two and a half times that backward.
        flops = 3.5 * 4 * args.heads * args.head_dim * sum(n**2 / 2 for n in lengths)
        for backend in filter(installed, BACKENDS):
            took = seconds(args, backend, lengths)
            row = {"length": length, "backend": backend, "ms": 1e3 * took, "tflops": flops / took / 1e12}
            print(f"{length:>13,} {backend:>8} {row['ms']:>9.2f} {row['tflops']:>8.1f}", flush=True)
            found.append(row)
    print(json.dumps(found))


if __name__ == "__main__":
    main()

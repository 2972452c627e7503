#!/usr/bin/env python
"""Tokens/s, model TFLOP/s and peak memory of training steps at several lengths: bf16, FP8, and plain transformers beside.

All in one run with the same model, one document a step, and whole layers recomputed on both sides. transformers keeps its
weights in fp32 and computes under autocast, ours holds them in bf16 and fp32. On a CPU the defaults are small, fp32, and FP8
is left out. The last line is JSON.

examples:
  python -m benchmarks.train_step
  python -m benchmarks.train_step --size 4B --layers 18 --lengths 32768 65536 --fp8 tensorwise blockwise
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.models import qwen3, random_model, random_pack
from dasd_megatron.config.gpu_specs import GIB
from dasd_megatron.config.training import MemoryConfig, ParallelConfig, TrainingConfig
from dasd_megatron.megatron_model.build_model import ModelOptions
from dasd_megatron.megatron_model.process_groups import process_groups
from dasd_megatron.models.flops import fp8_share, training_flops
from dasd_megatron.models.hf_model import HFModel
from dasd_megatron.training.device_stats import peak_flops
from dasd_megatron.training.trainer import Trainer

# Qwen3's own sizes, and one for a CPU.
SIZES: dict[str, dict[str, Any]] = {
    "5M": {},
    "0.6B": {
        "vocab_size": 151_936,
        "hidden_size": 1024,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "num_attention_heads": 16,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
    "4B": {
        "vocab_size": 151_936,
        "hidden_size": 2560,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "tie_word_embeddings": True,
    },
}
ON_GPU = torch.cuda.is_available()


def megatron(hf: HFModel, length: int, fp8: str | None) -> Callable[[], object]:
    """One step of ours."""
    training = TrainingConfig(precision="bf16" if ON_GPU else "fp32", fp8=fp8, global_batch=1)  # type: ignore[arg-type]
    memory = MemoryConfig(recompute="full")
    trainer = Trainer(
        random_model(hf, ModelOptions.of(training, memory), length), hf, ParallelConfig(), training, memory
    )
    pack = random_pack([length], hf.shape.vocabulary)
    return lambda: trainer.step([pack], 1e-5).read()


def transformers(hf: HFModel, length: int, attention: str = "sdpa") -> Callable[[], object]:
    """One step of plain transformers: the same model, its own attention and loss, torch's fused AdamW, fp32 weights."""
    device = "cuda" if ON_GPU else "cpu"
    config = AutoConfig.from_pretrained(str(hf.folder))
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).to(device).train()
    model.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    ids = torch.from_numpy(random_pack([length], hf.shape.vocabulary).ids).long()[None].to(device)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=ON_GPU):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def with_liger(hf: HFModel, length: int) -> Callable[[], object]:
    """The same with Liger's kernels, and FlashAttention where it is installed."""
    from liger_kernel.transformers import apply_liger_kernel_to_qwen3  # type: ignore[import-not-found]

    apply_liger_kernel_to_qwen3()
    return transformers(hf, length, "flash_attention_2" if find_spec("flash_attn") else "sdpa")


def measure(make: Callable[[], Callable[[], object]], steps: int) -> tuple[float, float] | str:
    """Median seconds of a step, and peak GiB (0 on a CPU); or why there is no number."""
    gc.collect()
    if ON_GPU:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        step = make()
        times = []
        for number in range(steps + 1):
            start = time.monotonic()
            step()
            if ON_GPU:
                torch.cuda.synchronize()
            if number:  # the first warms up
                times.append(time.monotonic() - start)
    except torch.OutOfMemoryError:
        return "out of memory"
    return statistics.median(times), torch.cuda.max_memory_allocated() / GIB if ON_GPU else 0.0


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="0.6B" if ON_GPU else "5M")
    parser.add_argument("--layers", type=int, help="of the size's; all 36 of 4B need 72 GB for the state alone")
    parser.add_argument("--lengths", type=int, nargs="+", default=[8192, 32_768, 65_536] if ON_GPU else [512, 1024])
    parser.add_argument("--fp8", nargs="*", default=["tensorwise", "delayed"] if ON_GPU else [], help="FP8 recipes")
    parser.add_argument("--steps", type=int, default=5)
    args = parser.parse_args()
    fields = dict(SIZES[args.size])
    if args.layers is not None:
        fields["num_hidden_layers"] = args.layers
    layers = "" if args.layers is None else f" with {args.layers} layers"
    print(torch.cuda.get_device_name() if ON_GPU else "CPU", f"torch {torch.__version__}, Qwen3 {args.size}{layers}")
    print(f"{'tokens':>7} {'what':>19} {'ms a step':>10} {'tokens/s':>10} {'TFLOP/s':>8} {'of peak':>8} {'GiB':>6}")
    with tempfile.TemporaryDirectory() as folder, process_groups(ParallelConfig(), 0):
        hf = qwen3(Path(folder), **fields)
        contenders: dict[str, Callable[[int], Callable[[], object]]] = {
            "transformers": lambda length: transformers(hf, length),
            "Megatron bf16" if ON_GPU else "Megatron fp32": lambda length: megatron(hf, length, None),
            **{f"Megatron {fp8}": partial(lambda fp8, length: megatron(hf, length, fp8), fp8) for fp8 in args.fp8},
        }
        if ON_GPU and find_spec("liger_kernel"):  # last: its kernels replace transformers' own for good
            contenders["transformers, Liger"] = lambda length: with_liger(hf, length)
        rows = []
        for name, make in contenders.items():
            for length in args.lengths:
                recipe = name.removeprefix("Megatron ")
                training = TrainingConfig(fp8=recipe if recipe in args.fp8 else None)
                flops = training_flops(hf.shape, [length])
                share = fp8_share(hf.shape, length, flops, training)
                rows.append(print_row(length, name, measure(partial(make, length), args.steps), flops, share))
    print(json.dumps(rows))


def print_row(
    length: int, name: str, found: tuple[float, float] | str, flops: float, share_of_fp8: float
) -> dict[str, Any]:
    """One line of the table, which it returns; shares are of the peak in the precisions that are used."""
    row: dict[str, Any] = {"tokens": length, "what": name}
    if isinstance(found, str):
        print(f"{length:>7} {name:>19} {found:>10}", flush=True)
        return {**row, "problem": found}
    seconds, memory = found
    peak = peak_flops(share_of_fp8)
    row |= {"ms": 1e3 * seconds, "tokens_per_second": length / seconds, "tflops": flops / seconds / 1e12, "gib": memory}
    if peak:
        row["of_peak"] = flops / seconds / peak
    share = f"{row['of_peak']:.1%}" if peak else ""
    print(
        f"{length:>7} {name:>19} {row['ms']:>10.1f} {row['tokens_per_second']:>10,.0f} {row['tflops']:>8.3f} "
        f"{share:>8} {memory:>6.1f}",
        flush=True,
    )
    return row


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""Saving and loading a training state on several ranks: seconds, and host memory a rank beside its share of the state.

Data parallelism over gloo, bf16 with the distributed optimizer. The model has Qwen3-4B's layers, with a tenth of its width and of
its vocabulary. All ranks are on this machine, and share its cores and its disk; on GPUs, take no more ranks than there are. The
last line is JSON.

example:
  python -m benchmarks.checkpoints --ranks 8
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.ranks import torchrun

# Qwen3-4B: 2560, 9728, 36, 32, 8, 128, 151,936.
SHAPE = {
    "hidden_size": 256,
    "intermediate_size": 973,
    "num_hidden_layers": 36,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": 15_194,
    "tie_word_embeddings": True,
}
MIB = 2**20


def extra_memory(work: Callable[[], object]) -> float:
    """MiB that this process had resident at most while it worked, above what it had before."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    before = _resident("VmRSS")
    work()
    return _resident("VmHWM") - before


def _resident(which: str) -> float:
    found = re.search(rf"^{which}:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) / 1024


def rank(folder: Path) -> None:
    """One rank: a step, a save, a load; writes what they took."""
    import torch
    import torch.distributed as dist

    from benchmarks.models import qwen3, random_model, random_pack
    from dasd_megatron.config.training import MemoryConfig, ParallelConfig, TrainingConfig
    from dasd_megatron.megatron_model.build_model import ModelOptions
    from dasd_megatron.megatron_model.process_groups import process_groups
    from dasd_megatron.training.checkpoint.checkpoints import StepCheckpoints
    from dasd_megatron.training.train_step_config import TrainConfig
    from dasd_megatron.training.trainer import Trainer

    torch.set_num_threads(1)
    parallel = ParallelConfig(data=int(os.environ["WORLD_SIZE"]))
    training = TrainingConfig(precision="bf16", global_batch=parallel.data)
    config = TrainConfig(training=training, isolate_documents=True, seed=0, parallel=parallel)
    with process_groups(parallel, 0):
        hf = qwen3(folder / f"hf-{dist.get_rank()}", **SHAPE)
        chunks = random_model(hf, ModelOptions(torch.bfloat16), 64)
        trainer = Trainer(chunks, hf, parallel, training, MemoryConfig())
        trainer.step([random_pack([64], SHAPE["vocab_size"], dist.get_rank())], 1e-5)
        checkpoints = StepCheckpoints(chunks, hf, trainer.optimizer, folder, config)
        seconds = {}

        def timed(name: str, work: Callable[[], object]) -> None:
            dist.barrier()
            start = time.perf_counter()
            work()
            dist.barrier()
            seconds[name] = time.perf_counter() - start

        def save() -> None:
            timed("stall", lambda: checkpoints.save(1))
            timed("written after", checkpoints.wait)

        memory = {"save": extra_memory(save), "load": extra_memory(lambda: timed("load", checkpoints.load_latest))}
        # bf16 weights; masters and two averages in fp32.
        share = sum(parameter.numel() for parameter in chunks[0].parameters()) * 14 / parallel.data / MIB
        result = {"seconds": seconds, "memory": memory, "share": share}
        (folder / f"result-{dist.get_rank()}.json").write_text(json.dumps(result))


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=8)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.folder:
        rank(args.folder)
        return
    with tempfile.TemporaryDirectory() as name:
        torchrun(args.ranks, "benchmarks.checkpoints", "--folder", name)
        results = [json.loads(path.read_text()) for path in Path(name).glob("result-*.json")]
    share, found = results[0]["share"], dict[str, float](results[0]["seconds"])
    print(f"{args.ranks} ranks, a rank's share of the state: {share:.0f} MiB")
    for what in ("save", "load"):
        most = max(result["memory"][what] for result in results)
        found[f"{what}_memory_of_share"] = most / share
        print(f"{what}: at most {most:.0f} MiB more in a rank, {most / share:.2f} x its share")
    print(", ".join(f"{name} {taken:.2f} s" for name, taken in results[0]["seconds"].items()))
    print(json.dumps({"ranks": args.ranks, "share_mib": share, **found}))


if __name__ == "__main__":
    main()

#!/usr/bin/env python
"""Memory that a training step takes on this CPU, beside what the estimate says, for three sizes of model.

Each size runs in a process of its own: peak resident memory above what Python, torch and Megatron take.

example:
  python benchmarks/memory.py
"""

from __future__ import annotations

import argparse
import json
import resource
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
    """Bytes of two training steps: measured, and estimated by part."""
    import torch

    from dasd_megatron.training import platform

    platform.prepare()
    from conversion.hf_model import HFModel
    from dasd_megatron.recipe.estimate import rank_memory
    from dasd_megatron.recipe.schema import Memory, Parallel, Training
    from dasd_megatron.training.distributed import process_groups
    from dasd_megatron.training.model import ModelOptions, build_model
    from dasd_megatron.training.train import Trainer

    fields, tokens = SIZES[name]
    training = Training(precision="fp32", global_batch=2, steps=2)
    with tempfile.TemporaryDirectory() as folder, process_groups(Parallel(), 0):
        hf = HFModel(write_config(Path(folder), fields))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        model = build_model(hf, Parallel(), ModelOptions(), tokens)
        for parameter in model[0].parameters():
            torch.nn.init.normal_(parameter.data, std=0.02)
        trainer = Trainer(model, hf, Parallel(), training, Memory())
        for _ in range(2):
            trainer.step(random_packs(2, tokens, fields["vocab_size"]), learning_rate=1e-5)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    estimate = rank_memory(hf.shape, Parallel(), training, Memory(), tokens, "cpu")
    return {"measured": peak, "estimated": estimate.total, **vars(estimate)}

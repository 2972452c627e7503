"""How much of the machine a training step uses."""

from __future__ import annotations

import os
import re
import resource
import sys
from pathlib import Path

import torch

from dasd_megatron.config.gpu_specs import GPU_SPECS
from dasd_megatron.megatron_model.collectives import all_reduce_max


def memory_gib() -> float:
    """Peak memory of the rank that needs most: on a GPU the allocator's, else the process's. Called on every rank."""
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else peak_resident_bytes()
    return all_reduce_max(peak)[0] / 2**30


def host_memory_gib() -> float:
    """Peak resident memory of a node's ranks, each taken for the largest of all. Called on every rank."""
    return all_reduce_max(peak_resident_bytes())[0] * int(os.environ.get("LOCAL_WORLD_SIZE", "1")) / 2**30


def peak_resident_bytes() -> int:
    """Most memory that this process has had resident.

    Linux's `ru_maxrss` comes second: a process that subprocess starts by vfork begins with its parent's peak there.
    """
    status = Path("/proc/self/status")
    if status.is_file() and (kib := re.search(r"^VmHWM:\s+(\d+) kB$", status.read_text(), re.MULTILINE)):
        return int(kib[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def peak_flops(fp8_share: float = 0.0) -> float | None:
    """Peak FLOP/s of this GPU's matrix products, this share of them in FP8; None on a CPU, or where the GPU isn't known."""
    if not torch.cuda.is_available():
        return None
    name = torch.cuda.get_device_name().lower()
    gpu = next((gpu for known, gpu in GPU_SPECS.items() if known in name), None)
    return None if gpu is None else gpu.peak(fp8_share)

"""Processes of a step side by side on one machine, engines each with GPUs of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dasd_megatron.steps.step import Replicas
from dasd_megatron.utils.child_process import child_options
from dasd_megatron.utils.errors import UserError


def replica_count(replicas: Replicas) -> int:
    """How many there are on this machine: as many as the step says, or one for each share of the GPUs, or each CPU core."""
    if replicas.count is not None:
        return replicas.count
    return max(1, len(visible_gpus()) // replicas.gpus_each) if replicas.gpus_each else cpu_cores()


def start_replicas(count: int, gpus_each: int, command: Sequence[str]) -> list[subprocess.Popen[bytes]]:
    """Starts `count` processes of `command` (what follows the interpreter), which end with this one.

    Raises UserError where the machine has GPUs, but too few.
    """
    in_child, environment = child_options()
    return [
        subprocess.Popen([sys.executable, *command], env={**environment, **share}, preexec_fn=in_child)
        for share in gpu_shares(count, gpus_each)
    ]


def gpu_shares(count: int, gpus_each: int) -> list[dict[str, str]]:
    """For each of `count` processes, the variables that leave it its own GPUs; empty on a machine without GPUs."""
    gpus = visible_gpus() if gpus_each else []
    if not gpus:
        return [{} for _ in range(count)]
    if count * gpus_each > len(gpus):
        raise UserError(
            f"launch.replicas={count} engines of {gpus_each} GPUs (engine.tensor_parallel, engine.megatron) need "
            f"{count * gpus_each} GPUs, and {len(gpus)} are visible; lower one of them"
        )
    starts = range(0, count * gpus_each, gpus_each)
    return [{"CUDA_VISIBLE_DEVICES": ",".join(gpus[start : start + gpus_each])} for start in starts]


def cpu_cores() -> int:
    """How many CPU cores this process may use."""
    return len(usable_cores())


def usable_cores() -> frozenset[int]:
    """CPU cores that this process may use, by number; all where the system doesn't restrict them (macOS)."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def visible_gpus() -> list[str]:
    """Names of this process's GPUs, as CUDA_VISIBLE_DEVICES has them. Doesn't load CUDA."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    numbers = [path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")]
    return sorted(numbers, key=int)

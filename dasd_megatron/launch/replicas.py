"""Engine processes side by side on one machine, each with GPUs of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dasd_megatron.errors import UserError
from dasd_megatron.launch.process import child_options


def replica_count(execution: Mapping[str, Any]) -> int:
    """How many replicas a step has on this machine: as many as it says, or one for each share of the GPUs."""
    if "engine" not in execution:
        return 1
    return int(execution["replicas"] or max(1, len(visible_gpus()) // execution["engine"]["tensor_parallel"]))


def start_replicas(count: int, execution: Mapping[str, Any], command: Sequence[str]) -> list[subprocess.Popen[bytes]]:
    """Starts `count` processes of `command` (what follows the interpreter), which end with this one.

    Raises UserError where the machine has GPUs, but too few.
    """
    in_child, environment = child_options()
    shares = gpu_shares(count, execution["engine"]["tensor_parallel"])
    return [
        subprocess.Popen([sys.executable, *command], env={**environment, **share}, preexec_fn=in_child)
        for share in shares
    ]


def gpu_shares(count: int, tensor_parallel: int) -> list[dict[str, str]]:
    """For each of `count` processes, the variables that leave it its own GPUs; empty on a machine without GPUs."""
    gpus = visible_gpus()
    if not gpus:
        return [{} for _ in range(count)]
    if count * tensor_parallel > len(gpus):
        raise UserError(
            f"launch.replicas={count} with engine.tensor_parallel={tensor_parallel} needs {count * tensor_parallel} GPUs, "
            f"and {len(gpus)} are visible; lower one of them"
        )
    starts = range(0, count * tensor_parallel, tensor_parallel)
    return [{"CUDA_VISIBLE_DEVICES": ",".join(gpus[start : start + tensor_parallel])} for start in starts]


def visible_gpus() -> list[str]:
    """Names of this process's GPUs, as CUDA_VISIBLE_DEVICES has them. Doesn't load CUDA."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    numbers = [path.name.removeprefix("nvidia") for path in Path("/dev").glob("nvidia[0-9]*")]
    return sorted(numbers, key=int)

"""The machine that a step runs on, for its manifest."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Any

from dasd_megatron.runtime.replicas import cpu_cores, visible_gpus


def gpu_model() -> str | None:
    """What the driver's own tool calls this machine's GPUs; None without one."""
    if not visible_gpus() or shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    names = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    return names[0].strip() if names else None


def machine_facts() -> dict[str, Any]:
    """What this process's job holds: `gpu` (None without), `gpus` and `cores` of a node, and `nodes`."""
    nodes = int(os.environ.get("SLURM_NNODES", "1"))
    return {"gpu": gpu_model(), "gpus": len(visible_gpus()), "cores": cpu_cores(), "nodes": nodes}

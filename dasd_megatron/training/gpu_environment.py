"""What a training process on a GPU has in its environment before CUDA starts. A user's own values are left alone."""

from __future__ import annotations

from collections.abc import Mapping

from dasd_megatron.config.training import ParallelConfig

# Torch's two names of one setting: whoever sets either has chosen.
ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
CONNECTIONS = "CUDA_DEVICE_MAX_CONNECTIONS"


def gpu_environment(parallel: ParallelConfig, given: Mapping[str, str]) -> dict[str, str]:
    """The variables to add to those that are `given`."""
    wanted = {}
    if not any(name in given for name in ALLOCATOR):
        # Packs differ in length: blocks of fixed size would leave gaps that no step fills.
        wanted[ALLOCATOR[0]] = "expandable_segments:True"
    if parallel.tensor > 1 and CONNECTIONS not in given:
        # Kernels start in the order that they were queued in: an exchange of sequence parallelism before the product beside it.
        wanted[CONNECTIONS] = "1"
    return wanted


def shown(environment: Mapping[str, str]) -> str:
    """What of it is set, for the log."""
    names = [*ALLOCATOR, CONNECTIONS, *sorted(name for name in environment if name.startswith(("NVTE_", "NCCL_")))]
    return " ".join(f"{name}={environment[name]}" for name in names if name in environment)

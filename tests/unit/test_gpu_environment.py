"""What training processes find in their environment, and what a user's own values do to it."""

from __future__ import annotations

import pytest

from dasd_megatron.config.training import ParallelConfig
from dasd_megatron.training.gpu_environment import gpu_environment, shown


@pytest.mark.parametrize(
    ("tensor", "given", "added"),
    [
        (1, {}, {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}),
        (2, {}, {"PYTORCH_ALLOC_CONF": "expandable_segments:True", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}),
        (2, {"PYTORCH_ALLOC_CONF": "", "CUDA_DEVICE_MAX_CONNECTIONS": "8"}, {}),
        (1, {"PYTORCH_CUDA_ALLOC_CONF": "max_split_size_mb:512"}, {}),  # torch's older name
    ],
)
def test_a_users_own_values_stay(tensor: int, given: dict[str, str], added: dict[str, str]) -> None:
    assert gpu_environment(ParallelConfig(tensor=tensor), given) == added


def test_what_is_shown() -> None:
    environment = {"NCCL_DEBUG": "WARN", "HOME": "/home", "NVTE_FUSED_ATTN": "1", "CUDA_DEVICE_MAX_CONNECTIONS": "1"}
    assert shown(environment) == "CUDA_DEVICE_MAX_CONNECTIONS=1 NCCL_DEBUG=WARN NVTE_FUSED_ATTN=1"

"""Tests on one GPU, of Hopper's generation or newer: pytest tests/gpu. They skip where there is none."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

import pytest
import torch

from dasd_megatron.config.training import ParallelConfig


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    without_te = importlib.util.find_spec("transformer_engine") is None
    for item in items:
        if "tests/gpu" not in item.nodeid:
            continue
        item.add_marker(pytest.mark.gpu)
        if not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no GPU"))
        elif without_te and item.path.name != "test_vllm.py":
            item.add_marker(pytest.mark.skip(reason="Transformer Engine isn't installed"))


@pytest.fixture
def one_rank() -> Iterator[None]:
    """Process groups of a single rank."""
    from dasd_megatron.megatron_model.process_groups import process_groups

    with process_groups(ParallelConfig(), 0):
        yield

"""Runs that several modules compare theirs with."""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest
import torch.distributed as dist

from tests.helpers.training_runs import Runs


@pytest.fixture(scope="module", autouse=True)
def no_process_group_left() -> Iterator[None]:
    """vLLM leaves its process groups in the process that it ran in, and would take them for its own the next time."""
    yield
    if "vllm.distributed.parallel_state" in sys.modules:
        from vllm.distributed.parallel_state import destroy_distributed_environment, destroy_model_parallel

        destroy_model_parallel()
        destroy_distributed_environment()
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("dense"))


@pytest.fixture(scope="session")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("experts"), "qwen3_moe")


@pytest.fixture(scope="session")
def gpt_oss(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Its activations are clamped where gpt-oss's are: clamped often, some of them fall to one side or the other of the
    clamp's kink by the order of a sum, and after it runs part ways."""
    return Runs(tmp_path_factory.mktemp("gpt-oss"), "gpt_oss", swiglu_limit=7.0)

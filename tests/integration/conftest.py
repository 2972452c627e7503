"""Runs that several modules compare theirs with."""

from __future__ import annotations

import pytest

from tests.training_runs import Runs


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("dense"))


@pytest.fixture(scope="session")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("experts"), "qwen3_moe")

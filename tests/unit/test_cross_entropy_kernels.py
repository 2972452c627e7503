"""The loss's Triton kernels: in Triton's interpreter equal to plain PyTorch, and compiled for the GPUs that we train on.

Not seen here: how fast they are, and what a GPU makes of the machine code.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.helpers.te_on_cpu.packages import triton

pytestmark = pytest.mark.network


def run(*arguments: str, **variables: str) -> Any:
    command = [sys.executable, "-m", "tests.helpers.triton_kernels", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(triton()), **variables}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_equal_to_plain_pytorch() -> None:
    """Whole tiles and parts of them, columns that no block divides, labels of other ranks; bf16 has 8 bits."""
    for dtype, tolerance in {"float32": 1e-6, "bfloat16": 2**-8}.items():
        for found in run(TRITON_INTERPRET="1")[dtype]:
            assert found["largest"] == found["chosen"] == 0
            assert found["total"] < 1e-6
            assert found["gradients"] <= tolerance


@pytest.mark.parametrize("capability", ["90", "100"])
def test_compiled_for_gpus(capability: str, tmp_path: Any) -> None:
    sizes = run(capability, TRITON_CACHE_DIR=str(tmp_path))
    assert len(sizes) == 2
    assert min(sizes.values()) > 1000

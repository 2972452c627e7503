"""Running conversions, and changing model folders."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from conversion.safetensors_writer import bytes_of
from tests.conftest import ROOT

CONVERT = [sys.executable, "tools/convert.py"]


NORM = "model.norm.weight"
LAYER_NORM, QUERY = "model.layers.1.input_layernorm.weight", "model.layers.0.self_attn.q_proj.weight"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def assert_same(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> None:
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.dtype == after[name].dtype, name
        assert bytes_of(tensor.contiguous()) == bytes_of(after[name].contiguous()), name  # NaN, -0.0 and all


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*CONVERT, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True, timeout=300)


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def change_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = weights(folder)
    change(tensors)
    save_file(tensors, folder / "model.safetensors")

"""The GPU's branch, with Transformer Engine's own Python and Megatron's wrappers of it, against the CPU reference in fp32.

The compiled extension is emulated (tests/helpers/te_on_cpu): kernels, their precision and what they refuse aren't seen here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import ROOT
from tests.helpers.forked_ranks import forked
from tests.helpers.te_on_cpu.packages import packages
from tests.helpers.tiny_models import tiny_model

pytestmark = [pytest.mark.full, pytest.mark.network]
LENGTHS = [37, 60, 1, 17, 9]
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 128,
    "num_hidden_layers": 2,
}
TOLERANCE = 1e-5


def run(module: str, *arguments: object, environment: dict[str, str] | None = None) -> None:
    code, output = forked(f"tests.helpers.{module}", [*map(str, arguments)], environment=environment, timeout=600)
    assert code == 0, output[-4000:]


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual.float() - expected.float()).norm() / expected.float().norm())


def test_permutation_is_what_the_kernels_compute(tmp_path: Path) -> None:
    on_te = {"TE_ON_CPU": os.pathsep.join(map(str, packages()))}
    run("permutation_rank", tmp_path / "result", environment=on_te)
    assert (tmp_path / "result").read_text() == "the same"


@pytest.fixture(scope="module", params=["qwen3", "qwen2", "llama", "qwen3_moe", "gpt_oss"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the reference computes of one checkpoint, and what Transformer Engine's layers do."""
    folder, sizes = tmp_path_factory.mktemp(request.param), dict(SIZES)
    if request.param in ("qwen2", "llama"):
        del sizes["head_dim"]
    if request.param == "gpt_oss":
        sizes["intermediate_size"] = 64
    model = tiny_model(folder / "hf", request.param, **sizes)
    (folder / "te").mkdir()
    run("reference_rank", model, folder / "start", folder / "reference.pt", json.dumps(LENGTHS))
    on_te = {"TE_ON_CPU": os.pathsep.join(map(str, packages()))}
    run("te_rank", model, folder / "start", folder / "te", json.dumps(LENGTHS), environment=on_te)
    return {
        "family": request.param,
        "folder": folder,
        "expected": torch.load(folder / "reference.pt", weights_only=True),
        "found": torch.load(folder / "te" / "out.pt", weights_only=True),
        "attention": json.loads((folder / "te" / "attention.json").read_text()),
    }


def test_logits_loss_and_gradients(both: dict[str, Any]) -> None:
    expected, found = both["expected"], both["found"]
    assert any(name.startswith("transformer_engine.pytorch.module") for name in found["modules"])
    assert relative(found["logits"], expected["logits"]) < TOLERANCE
    assert float(found["loss"]) == pytest.approx(float(expected["loss"]), rel=TOLERANCE)
    assert found["gradients"].keys() == expected["gradients"].keys()
    for name, gradient in expected["gradients"].items():
        assert relative(found["gradients"][name], gradient) < TOLERANCE, name


def test_attention_is_asked_for_packs(both: dict[str, Any]) -> None:
    """Each document a sequence of its own, causal, in float32 here; gpt-oss has sinks and every other layer a window."""
    calls = both["attention"]
    assert {(call["layout"], call["mask"]) for call in calls} == {("NVTE_THD_THD_THD", "NVTE_PADDING_CAUSAL_MASK")}
    assert all(call["sequences"] >= len(LENGTHS) for call in calls)
    sinks = both["family"] == "gpt_oss"
    assert {call["softmax"] for call in calls} == {f"NVTE_{'LEARNABLE' if sinks else 'VANILLA'}_SOFTMAX"}
    assert any(call["window"][0] >= 0 for call in calls) == sinks


def test_its_checkpoint_is_exported_without_it(both: dict[str, Any]) -> None:
    folder = both["folder"]
    code = "import sys; from pathlib import Path; from conversion.convert import export_hf; export_hf(*map(Path, sys.argv[1:]))"
    command = [sys.executable, "-c", code, str(folder / "te" / "saved"), str(folder / "exported")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    before, after = (load_file(folder / name / "model.safetensors") for name in ("hf", "exported"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name

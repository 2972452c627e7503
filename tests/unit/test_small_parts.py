"""Graders, schedule, seeds, micro-batches, conversion tables, progress and imports."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from conversion.hf_model import HFModel
from conversion.mapping import QKV, GateUp
from dasd_megatron.errors import UserError
from dasd_megatron.evaluation.evaluate import mean_and_error
from dasd_megatron.evaluation.graders import final_answer, grade
from dasd_megatron.recipe.schema import Training
from dasd_megatron.recipe.shape import Shape
from dasd_megatron.sampling.engine import sample_seed
from dasd_megatron.training.schedule import learning_rate
from tests.conftest import ROOT, TOY


@pytest.mark.parametrize(
    ("answer", "reference", "grader", "right"),
    [
        ("6", "6", "exact", True),
        ("6.", "6", "exact", False),
        ("The answer is 1,024.", "1024", "number", True),
        ("x = -3.50", "-3.5", "number", True),
        ("from 12 to 7", "12", "number", False),
        ("from 12 to 7", "7", "number", False),
        ("7/4", "3/4", "number", False),
        ("3 / 4", "3/4", "number", True),
        ("x^2", "y^2", "number", False),
        ("10^{3}", "3", "number", False),
        ("5-3", "-3", "number", False),
        (".5", "5", "number", False),
        ("1e3", "1000", "number", True),
        ("none", "7", "number", False),
        ("B", "B", "number", True),
    ],
)
def test_grade(answer: str, reference: str, grader: str, right: bool) -> None:
    assert grade(answer, reference, grader) is right


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>1</think> 42 ", "42"),
        ("<think>1", ""),
        ("<think>a</think>So \\boxed{1}, no: \\boxed{2}.", "2"),
        ("<think>a</think>\\boxed{\\frac{3}{2}}", "\\frac{3}{2}"),
    ],
)
def test_final_answer(text: str, answer: str) -> None:
    assert final_answer(text) == answer


def test_mean_and_error() -> None:
    found = mean_and_error([0.0, 1.0, 1.0, 0.0])
    assert found["mean"] == 0.5
    assert found["standard_error"] == pytest.approx(np.std([0, 1, 1, 0], ddof=1) / 2)


def test_schedule_warms_up_then_falls_to_the_minimum() -> None:
    training = Training(learning_rate=5e-5, min_learning_rate=1e-5)
    rates = [learning_rate(step, 100, training) for step in range(100)]
    assert rates[:10] == pytest.approx([5e-6 * (step + 1) for step in range(10)])
    assert max(rates) == rates[9]
    assert rates[-1] == pytest.approx(1e-5)
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[9:]))


@pytest.mark.parametrize(("packs", "fields", "steps"), [(91, {}, 9), (91, {"steps": 5}, 5), (64, {"epochs": 1}, 1)])
def test_total_steps(packs: int, fields: dict[str, int], steps: int) -> None:
    assert Training(**fields).total_steps(packs) == steps


def test_seeds_differ_and_repeat() -> None:
    seeds = {
        sample_seed(1, temperature, f"u{n}", index)
        for temperature in (0.6, 1.0)
        for n in range(50)
        for index in range(4)
    }
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert sample_seed(1, "a", 0) == sample_seed(1, "a", 0)


shapes = st.builds(
    lambda groups, per_group, head_dim: Shape(1, 8, groups * per_group, groups, head_dim, 16, 10),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 5),
)


@given(shapes)
def test_qkv_round_trip(shape: Shape) -> None:
    query = torch.randn(shape.heads * shape.head_dim, shape.hidden)
    key, value = (torch.randn(shape.query_groups * shape.head_dim, shape.hidden) for _ in range(2))
    entry = QKV("m", "q", "k", "v")
    merged = entry.to_megatron((query, key, value), shape)
    for ours, theirs in zip(entry.to_hf(merged, shape), (query, key, value), strict=True):
        assert torch.equal(ours, theirs)


def test_gate_up_round_trip() -> None:
    gate, up = torch.randn(3, 2), torch.randn(3, 2)
    entry = GateUp("m", "g", "u")
    assert all(map(torch.equal, entry.to_hf(entry.to_megatron((gate, up), None), None), (gate, up)))  # type: ignore[arg-type]


def copy_model(folder: Path, **changes: object) -> Path:
    import json
    import shutil

    shutil.copytree(TOY / "student", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    return folder


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "the architecture MambaForCausalLM isn't supported"),
        ({"attention_bias": True}, "attention_bias=True isn't supported"),
        ({"logit_softcap": 30}, "the field 'logit_softcap' isn't known"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 4}}, "rope_type='dynamic' isn't supported"),
        ({"rope_parameters": {"rope_type": "yarn", "short_factor": [1]}}, "rope_type='yarn' with short_factor"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "Missing required keys in `rope_parameters`"),
        ({"partial_rotary_factor": 0.5}, "the field 'partial_rotary_factor' isn't known"),
    ],
)
def test_models_that_are_not_understood(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    folder = copy_model(tmp_path / "m", **changes)
    with pytest.raises(UserError) as caught:
        _ = HFModel(folder).rope
    assert message in str(caught.value)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = copy_model(tmp_path / "m")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match="can run code"):
        HFModel(folder).tensor("model.norm.weight")


def test_truncated_weights(tmp_path: Path) -> None:
    folder = copy_model(tmp_path / "m")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="damaged or cut off"):
        HFModel(folder).tensor("model.norm.weight")


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        (
            "dasd_megatron.recipe.steps, dasd_megatron.artifacts.artifact, dasd_megatron.launch.main",
            "torch vllm megatron transformers",
        ),
        (
            "dasd_megatron.curation.filter, dasd_megatron.curation.select, dasd_megatron.curation.pack",
            "torch vllm megatron",
        ),
        ("dasd_megatron.sampling.sample, dasd_megatron.sampling.score", "torch vllm megatron"),
    ],
)
def test_light_imports(modules: str, absent: str) -> None:
    loaded = run_python(f"import sys, {modules}; print([name for name in {absent.split()!r} if name in sys.modules])")
    assert loaded == "[]"


@pytest.mark.parametrize("tool", sorted(path.name for path in (ROOT / "tools").glob("*.py")))
def test_help_has_examples_and_loads_nothing_heavy(tool: str) -> None:
    code = (
        f"import runpy, sys\nsys.argv = ['{tool}', '--help']\n"
        f"try: runpy.run_path('tools/{tool}', run_name='__main__')\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'vllm', 'transformers', 'pyarrow') if name in sys.modules])"
    )
    text = run_python(code)
    assert text.endswith("[]")
    assert f"python tools/{tool}" in text


def test_log_lines_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    from dasd_megatron.progress import Progress

    with Progress("train", 2, "steps") as progress:
        progress.update(1)
        progress.update(2, "loss 1.0")
        progress.update(2)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("train: 2/2 steps")
    assert lines[0].endswith("loss 1.0")

"""What modules and commands load, and what --help says."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        (
            "dasd_megatron.pipeline.graph, dasd_megatron.artifacts.artifact, dasd_megatron.cli.launch",
            "torch vllm megatron transformers",
        ),
        (
            "dasd_megatron.curation.filtering, dasd_megatron.curation.selection, dasd_megatron.curation.packing",
            "torch vllm megatron",
        ),
        ("dasd_megatron.sampling.sample, dasd_megatron.sampling.score", "torch vllm megatron"),
    ],
)
def test_light_imports(modules: str, absent: str) -> None:
    loaded = run_python(f"import sys, {modules}; print([name for name in {absent.split()!r} if name in sys.modules])")
    assert loaded == "[]"


def test_a_rank_without_a_gpu_loads_neither_torchs_compiler_nor_log_writers() -> None:
    """They would double the time in which it starts."""
    absent = ["torch._dynamo.eval_frame", "torch._inductor", "wandb", "tensorboard"]
    loaded = f"print([name for name in {absent} if name in sys.modules])"
    assert run_python(f"import sys, dasd_megatron.training.stage; {loaded}") == "[]"


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

"""What a user sees before and during a stage: estimates that hold, ranks that can be built, numbers in TensorBoard."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.config.training import ParallelConfig
from dasd_megatron.training.data import PackDataset
from tests.conftest import ROOT
from tests.helpers.training_runs import Runs

RECIPE = "examples/toy/recipe.yaml"
# The published config of Qwen3-30B-A3B.
QWEN3_30B_A3B = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "decoder_sparse_step": 1,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 40960,
    "max_window_layers": 48,
    "mlp_only_layers": [],
    "model_type": "qwen3_moe",
    "moe_intermediate_size": 768,
    "norm_topk_prob": True,
    "num_attention_heads": 32,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 48,
    "num_key_value_heads": 4,
    "output_router_logits": False,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000.0,
    "router_aux_loss_coef": 0.001,
    "sliding_window": None,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def tool(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "tools/train.py", RECIPE, "--stage", "low_temperature", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={"COLUMNS": "200", "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.full
@pytest.mark.parametrize("size", ["10M", "50M", "150M"])
def test_estimated_memory_is_what_is_used(size: str) -> None:
    command = [sys.executable, "-m", "benchmarks.memory", "--size", size]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["estimated"] == pytest.approx(found["measured"], rel=0.15)


def big_student(folder: Path) -> list[str]:
    """Overrides of the toy recipe: a student of 30B parameters (its config; weights aren't read) at 64K tokens."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(QWEN3_30B_A3B))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (source := ROOT / "examples/toy/student" / name).is_file():
            (folder / name).write_bytes(source.read_bytes())
    layout = ["tensor=2", "pipeline=4", "virtual_pipeline=2", "context=2", "data=4", "expert=8"]
    return [
        f"student.model={folder}",
        "packing.context_length=65536",
        "training.global_batch=64",
        "training.precision=bf16",
        *(f"parallel.{size}" for size in layout),
    ]


def test_estimate_for_64_gpus(tmp_path: Path) -> None:
    overrides = [*big_student(tmp_path / "student"), "memory.recompute=full"]
    done = tool("--estimate", "--gpu", "h100", *overrides)
    assert done.returncode == 0, done.stderr
    for text in (
        "30,532,122,624",
        "4,194,304",
        "weights",
        "gradients",
        "optimizer",
        "activations",
        "logits",
        "H100 has",
    ):
        assert text in done.stdout
    assert "at 40% MFU on 64 H100" in done.stdout


def test_estimate_warns_where_it_will_not_fit(tmp_path: Path) -> None:
    done = tool("--estimate", "--gpu", "h100", *big_student(tmp_path / "student"))
    assert "less than 17%" in done.stdout
    assert "set memory.recompute" in done.stdout


def test_dry_run_builds_the_ranks_of_64_gpus(tmp_path: Path) -> None:
    done = tool("--dry-run", *big_student(tmp_path / "student"))
    assert done.returncode == 0, done.stderr[-2000:]
    lines = done.stdout.splitlines()
    assert lines[0].endswith("(64 ranks), Qwen3MoeForCausalLM of 30,532,122,624 parameters")
    assert "multiples of 4 tokens" in lines[1]
    assert [line.split(":")[0] for line in lines[2:6]] == [f"rank {16 * n}, pipeline stage {n}" for n in range(4)]
    assert lines[2].endswith("embedding, layers 1-6 | layers 25-30")
    assert lines[5].endswith("layers 19-24 | layers 43-48, head")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dry-run", "parallel.tensor=3"], "tensor=3 doesn't divide the 4 attention heads"),
        (["--estimate", "training.fp8=delayed"], "needs precision: bf16"),
        (["--estimate", "memory.recompute_layers=2"], "recompute_layers=2 needs recompute: full"),
        (["--gpu", "h100"], "--gpu goes with --estimate"),
        (["--estimate", "--efficiency", "40"], "40 is not between 0 and 1"),
    ],
)
def test_mistakes_have_one_message(arguments: list[str], message: str) -> None:
    done = tool(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_numbers_of_each_step(tmp_path: Path) -> None:
    """In metrics.jsonl, and the same in TensorBoard's event files."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = Runs(tmp_path).run(
        "train", ParallelConfig(data=2), steps=3, logging={"tensorboard": str(tmp_path / "events")}
    )
    run.finish()
    lines = run.numbers()
    events = EventAccumulator(str(tmp_path / "events")).Reload()
    assert [line["step"] for line in lines] == [1, 2, 3]
    for name in ("loss", "grad_norm", "lr", "tokens", "tokens_per_second", "tflops_per_gpu", "memory_gib"):
        points = events.Scalars(name)
        assert [point.step for point in points] == [1, 2, 3]
        assert [point.value for point in points] == pytest.approx([line[name] for line in lines], rel=1e-6)
        assert all(point.value > 0 for point in points)


def test_weights_and_biases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    Runs(tmp_path).run("train", ParallelConfig(), steps=3, logging={"wandb_project": "distillation"}).finish()
    assert list((tmp_path / "wandb").glob("offline-run-*-train"))


def test_a_loss_that_is_not_finite_stops_the_stage(tmp_path: Path) -> None:
    """On every rank, with the documents of the step's packs; checkpoints stay."""
    runs = Runs(tmp_path)
    run = runs.run("train", ParallelConfig(data=2), steps=9, save_every=1, learning_rate=1e30, min_learning_rate=1e-4)
    process = run.start()
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 2
    last = errors.strip().splitlines()[-1]
    step = len(run.log()) + 1
    assert "Traceback" not in errors
    assert last.startswith("error: train: the ")
    assert f"at step {step}; the checkpoint before it is kept. Lower training.learning_rate" in last
    packs = PackDataset(Artifact(runs.packs), json.loads(run.context.read_text())["config"]["seed"], True)
    documents = [uuid for sample in range(4 * (step - 1), 4 * step) for uuid in packs.uuids(sample)]
    assert last.endswith(", ".join(documents))
    assert f"step-{step - 1:07d}" in run.folders()

"""Stages of training on GPUs: parallel layouts over NCCL, attention backends, a resumed and a partly offloaded optimizer.

In bf16, in which another order of sums shows: tolerances are those of rounding. Kernels' backward passes aren't deterministic.
"""

from __future__ import annotations

import importlib.util
import os

import pytest
import torch

from dasd_megatron.config.training import ParallelConfig
from tests.helpers.tiny_models import random_packs
from tests.helpers.training_runs import Run, Runs, check_close

# Sizes that cuDNN's attention takes.
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
}
LAYOUTS = {
    "dp2": ParallelConfig(data=2),
    "tp2-sp": ParallelConfig(tensor=2),
    "pp2-interleaved": ParallelConfig(pipeline=2, virtual_pipeline=2),
    "cp2": ParallelConfig(context=2),
    "cp2-a2a": ParallelConfig(context=2, context_comm="a2a"),
}
EXPERT_LAYOUTS = {
    "ep2": ParallelConfig(data=2, expert=2),
    "tp2-spxep2": ParallelConfig(tensor=2, expert=2),
}
SETTINGS = {"precision": "bf16", "steps": 8, "save_every": 3}
LOSS, GRAD_NORM = 0.03, 0.05
# Kernels on a CPU, as benchmarks.gpu_check --stand-in has them: slowly.
EMULATED = "TE_ON_CPU" in os.environ

two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")


def stages(tmp_path_factory: pytest.TempPathFactory, family: str, **fields: int) -> Runs:
    folder = tmp_path_factory.mktemp(family)
    packs = random_packs(folder / "packs", 11, context=32 if EMULATED else 512)
    return Runs(folder, family, packs, num_hidden_layers=4, **SIZES, **fields)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return stages(tmp_path_factory, "qwen3")


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return stages(tmp_path_factory, "qwen3_moe", moe_intermediate_size=128)


def on_one(runs: Runs) -> Run:
    run = runs.run("one-gpu", ParallelConfig(), **SETTINGS)
    if not run.output.is_dir():
        run.finish()
    return run


@two_gpus
@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(dense: Runs, name: str) -> None:
    check_close(dense.run(name, LAYOUTS[name], **SETTINGS).finish(), on_one(dense).log(), LOSS, GRAD_NORM)


@two_gpus
@pytest.mark.parametrize("name", EXPERT_LAYOUTS)
def test_expert_layout(experts: Runs, name: str) -> None:
    check_close(experts.run(name, EXPERT_LAYOUTS[name], **SETTINGS).finish(), on_one(experts).log(), LOSS, GRAD_NORM)


@pytest.mark.parametrize(("attention", "used"), [("cudnn", "cuDNN"), ("flash", "FlashAttention")])
def test_attention(dense: Runs, attention: str, used: str) -> None:
    """The one that is asked for runs, is named, and computes the same."""
    if attention == "flash" and not any(map(importlib.util.find_spec, ("flash_attn", "flash_attn_3"))):
        pytest.skip("FlashAttention isn't installed")
    run = dense.run(attention, ParallelConfig(), attention=attention, **SETTINGS)
    process = run.start()
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors[-3000:]
    assert f"attention: {used}" in errors
    check_close(run.log(), on_one(dense).log(), LOSS, GRAD_NORM)


def test_a_stage_resumes(dense: Runs) -> None:
    check_resumed(dense, "resumed", on_one(dense))


def test_an_offloaded_optimizer_resumes(dense: Runs) -> None:
    """Half of its state in host memory."""
    offloaded = {"memory": {"offload_optimizer": 0.5}}
    whole = dense.run("offloaded", ParallelConfig(), **SETTINGS, **offloaded)
    check_close(whole.finish(), on_one(dense).log(), LOSS, GRAD_NORM)
    check_resumed(dense, "offloaded-resumed", whole, **offloaded)


def check_resumed(runs: Runs, name: str, whole: Run, **settings: object) -> None:
    run = runs.run(name, ParallelConfig(), {"FAIL_AT": "5"}, **SETTINGS, **settings)
    assert "the loss is nan" in run.start().communicate(timeout=600)[1]
    assert run.folders() == ["step-0000003"]
    del run.behaviour["FAIL_AT"]
    check_close(run.finish(), whole.log(), LOSS, GRAD_NORM)

"""Stages of training on Transformer Engine's own Python, in parallel layouts, against the CPU reference on one rank, in fp32.

All of the GPU's branch runs but kernels (tests/helpers/te_on_cpu): not seen here are their precision, what they refuse, streams,
NCCL, memory and speed.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from conversion.convert import export_hf, import_hf
from dasd_megatron.config.training import ParallelConfig
from tests.helpers.te_on_cpu.packages import packages
from tests.helpers.tiny_models import random_packs
from tests.helpers.training_runs import Run, Runs, check_close, check_same

pytestmark = [pytest.mark.full, pytest.mark.network]
STEPS = 5
LOSS, GRAD_NORM = 1e-5, 1e-5
LAYOUTS = {
    "one": ParallelConfig(),
    "dp2": ParallelConfig(data=2),
    "tp2-sp": ParallelConfig(tensor=2),
    "pp2-interleaved": ParallelConfig(pipeline=2, virtual_pipeline=2),
    "cp2": ParallelConfig(context=2),
    "cp2-a2a": ParallelConfig(context=2, context_comm="a2a"),
}
EXPERT_LAYOUTS = {
    "one": ParallelConfig(),
    "ep2": ParallelConfig(data=2, expert=2),
}
GPT_OSS_LAYOUTS = {
    "one": ParallelConfig(),
    "cp2": ParallelConfig(context=2),
}
RECOMPUTED = ("selective", "full")


def on_te(
    runs: Runs, name: str, parallel: ParallelConfig, behaviour: dict[str, str] | None = None, **settings: Any
) -> Run:
    variables = {"TE_ON_CPU": os.pathsep.join(map(str, packages())), **(behaviour or {})}
    return runs.run(f"te-{name}", parallel, variables, **{"steps": STEPS, **settings})


def reference(runs: Runs, **settings: Any) -> Run:
    """On one rank, of the CPU's own layers."""
    run = runs.run("five-steps", ParallelConfig(), **{"steps": STEPS, **settings})
    if not run.output.is_dir():
        run.finish()
    return run


def failed_once(run: Run, step: int = 4) -> Run:
    """The run, which failed at a step after its first checkpoint and was started again."""
    run.behaviour["FAIL_AT"] = str(step)
    assert "the loss is nan" in run.start().communicate(timeout=300)[1]
    assert "step-0000002" in run.folders()
    del run.behaviour["FAIL_AT"]
    run.finish()
    return run


@pytest.fixture(scope="module")
def few_experts(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """So small that Triton's interpreter, which permutes tokens, needs seconds."""
    folder = tmp_path_factory.mktemp("experts")
    return Runs(folder, "qwen3_moe", random_packs(folder / "packs", 5, 11, context=32), num_hidden_layers=1)


@pytest.fixture(scope="module")
def small_gpt_oss(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """A layer with a window, and one without."""
    folder = tmp_path_factory.mktemp("gpt-oss")
    packs = random_packs(folder / "packs", 5, 11, context=32)
    return Runs(folder, "gpt_oss", packs, num_hidden_layers=2, swiglu_limit=7.0, head_dim=24)


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(dense: Runs, name: str) -> None:
    check_close(on_te(dense, name, LAYOUTS[name]).finish(), reference(dense).log(), LOSS, GRAD_NORM)


@pytest.mark.parametrize("name", EXPERT_LAYOUTS)
def test_expert_layout(few_experts: Runs, name: str) -> None:
    lines = on_te(few_experts, name, EXPERT_LAYOUTS[name], global_batch=2).finish()
    check_close(lines, reference(few_experts, global_batch=2).log(), LOSS, GRAD_NORM)


@pytest.mark.parametrize("name", GPT_OSS_LAYOUTS)
def test_gpt_oss_layout(small_gpt_oss: Runs, name: str) -> None:
    """Sinks: context parallelism exchanges tokens for heads."""
    lines = on_te(small_gpt_oss, name, GPT_OSS_LAYOUTS[name], global_batch=2).finish()
    check_close(lines, reference(small_gpt_oss, global_batch=2).log(), LOSS, GRAD_NORM)


def test_recompute_of_experts_changes_nothing(few_experts: Runs) -> None:
    """Without another exchange of tokens."""
    lines = on_te(
        few_experts, "again", EXPERT_LAYOUTS["ep2"], global_batch=2, memory={"recompute": "selective"}
    ).finish()
    check_close(lines, reference(few_experts, global_batch=2).log(), LOSS, GRAD_NORM)


@pytest.mark.parametrize("recompute", RECOMPUTED)
def test_recompute_changes_nothing(dense: Runs, recompute: str) -> None:
    lines = on_te(dense, recompute, ParallelConfig(), memory={"recompute": recompute}).finish()
    check_close(lines, reference(dense).log(), LOSS, GRAD_NORM)


def test_an_offloaded_optimizer_changes_nothing_and_resumes(dense: Runs) -> None:
    """In bf16, which it needs; half of the state on either side. Stopped and started again: bit for bit."""
    settings = {"precision": "bf16", "save_every": 2}
    expected = on_te(dense, "bf16", ParallelConfig(), **settings).finish()
    offloaded = {**settings, "memory": {"offload_optimizer": 0.5}}
    whole = on_te(dense, "offloaded", ParallelConfig(), **offloaded)
    check_close(whole.finish(), expected, 2e-3, 1e-2)
    check_same(failed_once(on_te(dense, "offloaded-again", ParallelConfig(), **offloaded)), whole)


@pytest.fixture(scope="module")
def for_fp8(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Sizes that FP8 takes, in squares of 128."""
    sizes = {"hidden_size": 128, "intermediate_size": 128, "num_hidden_layers": 2}
    return Runs(tmp_path_factory.mktemp("fp8"), **sizes)


@pytest.fixture(scope="module")
def of_bf16(for_fp8: Runs) -> Run:
    run = on_te(for_fp8, "bf16", ParallelConfig(), precision="bf16")
    run.finish()
    return run


@pytest.mark.parametrize("fp8", ["tensorwise", "blockwise", "delayed"])
def test_fp8_resumes_and_hands_over(for_fp8: Runs, of_bf16: Run, fp8: str) -> None:
    """Near bf16 and not the same. Bit for bit: a stage that failed and was started again, and a stage that starts from one's
    weights or from their export."""
    settings = {"precision": "bf16", "fp8": fp8, "save_every": 2}
    whole = on_te(for_fp8, fp8, ParallelConfig(), **settings)
    lines, in_bf16 = whole.finish(), of_bf16.log()
    assert lines[-1]["loss"] < lines[0]["loss"]
    check_close(lines, in_bf16, 0.05, 0.2)
    assert all(abs(line["loss"] - other["loss"]) > 1e-5 for line, other in zip(lines, in_bf16, strict=True))
    check_same(failed_once(on_te(for_fp8, f"{fp8}-again", ParallelConfig(), **settings)), whole)

    export_hf(whole.output / "checkpoint", for_fp8.folder / f"{fp8}-hf")
    import_hf(for_fp8.folder / f"{fp8}-hf", for_fp8.folder / f"{fp8}-imported" / "checkpoint")
    starts = {"from-weights": whole.output, "from-export": for_fp8.folder / f"{fp8}-imported"}
    logs = [
        on_te(for_fp8, f"{fp8}-{name}", ParallelConfig(), start=start, **settings).finish()
        for name, start in starts.items()
    ]
    assert logs[0] == logs[1]


@pytest.fixture(scope="module")
def experts_for_fp8(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("fp8-experts")
    sizes = {"hidden_size": 128, "moe_intermediate_size": 128, "num_hidden_layers": 1}
    return Runs(folder, "qwen3_moe", random_packs(folder / "packs", 5, 11, context=32), **sizes)


@pytest.mark.parametrize("fp8", ["tensorwise", "blockwise"])
def test_experts_in_fp8(experts_for_fp8: Runs, fp8: str) -> None:
    """Near bf16, as near as few tokens are of which some choose other experts."""
    settings = {"precision": "bf16", "global_batch": 2, "steps": 1}
    in_bf16 = on_te(experts_for_fp8, "bf16", ParallelConfig(), **settings)
    lines = on_te(experts_for_fp8, fp8, ParallelConfig(), fp8=fp8, **settings).finish()
    expected = in_bf16.log() or in_bf16.finish()
    check_close(lines, expected, 0.2, 0.3)
    assert all(abs(line["loss"] - other["loss"]) > 1e-5 for line, other in zip(lines, expected, strict=True))


def test_delayed_scales_of_experts_resume(experts_for_fp8: Runs) -> None:
    """Bit for bit: each expert has its own."""
    settings = {"precision": "bf16", "fp8": "delayed", "global_batch": 2, "save_every": 2, "steps": 3}
    whole = on_te(experts_for_fp8, "delayed", ParallelConfig(), **settings)
    whole.finish()
    check_same(failed_once(on_te(experts_for_fp8, "delayed-again", ParallelConfig(), **settings), 3), whole)


def test_measuring_changes_nothing(for_fp8: Runs) -> None:
    """Delayed scales follow from what has been seen, and don't from what is held out."""
    settings = {"precision": "bf16", "fp8": "delayed", "save_every": 2}
    seldom = on_te(for_fp8, "delayed", ParallelConfig(), **settings)
    expected = seldom.log() or seldom.finish()
    often = on_te(for_fp8, "delayed-measured", ParallelConfig(), held_out_every=1, **settings)
    assert [line["loss"] for line in often.finish()] == [line["loss"] for line in expected]
    assert all("held_out_loss" in line for line in often.log())


# Each with how far loss and gradient norm may lie from those of one rank, whose scales are of other parts of a tensor. FP8 itself
# is 0.05 from bf16. Blockwise would need more columns for TP2.
FP8_LAYOUTS = [
    ("tensorwise", ParallelConfig(tensor=2), 0.04, 0.04),
    ("tensorwise", ParallelConfig(context=2), 0.04, 0.04),
    ("tensorwise", ParallelConfig(pipeline=2), LOSS, GRAD_NORM),
    ("blockwise", ParallelConfig(context=2), 0.04, 0.04),
    ("blockwise", ParallelConfig(pipeline=2), LOSS, GRAD_NORM),
]


@pytest.mark.parametrize(("fp8", "parallel", "loss", "grad_norm"), FP8_LAYOUTS)
def test_fp8_in_a_layout(for_fp8: Runs, fp8: str, parallel: ParallelConfig, loss: float, grad_norm: float) -> None:
    settings = {"precision": "bf16", "fp8": fp8, "save_every": 2}
    one = on_te(for_fp8, fp8, ParallelConfig(), **settings)
    expected = one.log() or one.finish()
    check_close(on_te(for_fp8, f"{fp8}-{parallel}", parallel, **settings).finish(), expected, loss, grad_norm)

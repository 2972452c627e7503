"""Every parallel layout trains the same as one process, in fp32 on packed documents: 20 optimizer steps, 8 of experts."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.config.training import ParallelConfig
from dasd_megatron.training.data import PackDataset
from tests.helpers.marks import mostly_full
from tests.helpers.training_runs import Run, Runs, check_close

LAYOUTS = {
    "dp2": ParallelConfig(data=2),
    "dp2-whole-optimizer": ParallelConfig(data=2, distributed_optimizer=False),
    "dp4": ParallelConfig(data=4),  # 1 micro-batch a rank; dp2 has 2, one process 4
    "tp2": ParallelConfig(tensor=2, sequence=False),
    "tp2-sp": ParallelConfig(tensor=2),
    "pp2": ParallelConfig(pipeline=2),
    "pp2-interleaved": ParallelConfig(pipeline=2, virtual_pipeline=2),
    "cp2": ParallelConfig(context=2),
    "tp2xpp2": ParallelConfig(tensor=2, pipeline=2),
    "tp2-spxcp2": ParallelConfig(tensor=2, context=2),
    "cp2xdp2": ParallelConfig(context=2, data=2),
}
EXPERT_LAYOUTS = {
    "ep2": ParallelConfig(data=2, expert=2),
    "cp2": ParallelConfig(context=2),
    "tp2-spxep2": ParallelConfig(tensor=2, expert=2),
    "tp2-spxpp2": ParallelConfig(tensor=2, pipeline=2),
    "pp2xep2xdp2": ParallelConfig(pipeline=2, data=2, expert=2),
}
# Each with how its layers are recomputed. A chunk of the interleaved stages has one layer, with a window or without.
GPT_OSS_LAYOUTS = {
    "ep2": (ParallelConfig(data=2, expert=2), "none"),
    "cp2": (ParallelConfig(context=2), "none"),
    "tp2-sp": (ParallelConfig(tensor=2), "full"),
    "pp2-interleaved": (ParallelConfig(pipeline=2, virtual_pipeline=2), "selective"),
    "tp2-spxpp2": (ParallelConfig(tensor=2, pipeline=2), "none"),
}
# Experts are slow on a CPU.
STEPS_OF_EXPERTS = 8
# Only the order of fp32 sums differs between layouts: measured differences are below 5e-7 and 4e-7.
LOSS, GRAD_NORM = 5e-6, 1e-5


def one_process(runs: Runs) -> Run:
    """What layouts of experts are compared with."""
    run = runs.run("few-steps", ParallelConfig(), steps=STEPS_OF_EXPERTS)
    if not run.output.is_dir():
        run.finish()
    return run


@pytest.mark.parity
@pytest.mark.parametrize("name", mostly_full(LAYOUTS, ("dp2", "tp2-sp", "pp2", "cp2")))
def test_layout(dense: Runs, name: str) -> None:
    lines = dense.run(name, LAYOUTS[name]).finish()
    check_close(lines, dense.undisturbed().log(), LOSS, GRAD_NORM)
    assert lines[-1]["loss"] < lines[0]["loss"]


@pytest.mark.parity
@pytest.mark.parametrize("name", mostly_full(EXPERT_LAYOUTS, ("ep2",)))
def test_expert_layout(experts: Runs, name: str) -> None:
    """With the load-balancing loss, whose weight must not depend on where padding lies."""
    reference = one_process(experts)
    run = experts.run(name, EXPERT_LAYOUTS[name], steps=STEPS_OF_EXPERTS)
    check_close(run.finish(), reference.log(), LOSS, GRAD_NORM)
    for line, expected in zip(run.numbers(), reference.numbers(), strict=True):
        assert 1.0 <= line["load_balancing_loss"] < 4.0  # of 4 experts: 1 if all are chosen alike
        assert line["load_balancing_loss"] == pytest.approx(expected["load_balancing_loss"], rel=1e-4)


@pytest.mark.parity
@pytest.mark.parametrize("name", mostly_full(GPT_OSS_LAYOUTS, ("tp2-sp",)))
def test_gpt_oss_layout(gpt_oss: Runs, name: str) -> None:
    """Sinks, windows and biases, those of experts among them."""
    parallel, recompute = GPT_OSS_LAYOUTS[name]
    reference = one_process(gpt_oss)
    run = gpt_oss.run(name, parallel, memory={"recompute": recompute}, steps=STEPS_OF_EXPERTS)
    lines = run.finish()
    check_close(lines, reference.log(), LOSS, GRAD_NORM)
    assert lines[-1]["loss"] < lines[0]["loss"]
    weights, expected = run.weights(), reference.weights()
    for sinks in [name for name in expected if name.endswith("sinks")]:  # each rank wrote those of its heads
        torch.testing.assert_close(weights[sinks], expected[sinks], atol=1e-4, rtol=0)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "memory"),
    [
        ("selective", {"recompute": "selective"}),
        ("full", {"recompute": "full"}),
        ("by-layers", {"recompute": "full", "recompute_layers": 1}),
    ],
)
@pytest.mark.parametrize("layout", mostly_full(["one", "tp2-spxpp2"], ("one",)))
def test_recompute_changes_nothing(dense: Runs, name: str, memory: dict[str, Any], layout: str) -> None:
    parallel = ParallelConfig() if layout == "one" else ParallelConfig(tensor=2, pipeline=2)
    lines = dense.run(f"{name}-{layout}", parallel, memory=memory, steps=4).finish()
    reference = dense.run("four-steps", ParallelConfig(), steps=4)
    check_close(lines, reference.log() or reference.finish(), LOSS, GRAD_NORM)


@pytest.mark.parity
@pytest.mark.parametrize("recompute", mostly_full(["selective", "full"], ()))
def test_recompute_of_experts_changes_nothing(experts: Runs, recompute: str) -> None:
    """The load-balancing loss is counted once, though the router runs twice."""
    memory, reference = {"recompute": recompute}, one_process(experts)
    run = experts.run(f"{recompute}-tp2", ParallelConfig(tensor=2), memory=memory, steps=STEPS_OF_EXPERTS)
    check_close(run.finish(), reference.log(), LOSS, GRAD_NORM)
    balance = [line["load_balancing_loss"] for line in run.numbers()]
    expected = [line["load_balancing_loss"] for line in reference.numbers()]
    assert balance == pytest.approx(expected, rel=1e-4)


def test_loss_is_the_token_mean_of_the_global_batch(dense: Runs) -> None:
    """The one process that the layouts are compared with, against transformers; a mean of means would differ."""
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(str(dense.model), dtype=torch.float32)
    lines = dense.undisturbed().log()
    seed = json.loads(dense.undisturbed().context.read_text())["config"]["seed"]
    packs = PackDataset(Artifact(dense.packs), seed, True)
    sums: list[tuple[float, int]] = []
    for sample in range(4):
        pack = packs.pack(sample)
        total, count, start = 0.0, 0, 0
        for length in pack.lengths:
            ids = torch.from_numpy(pack.ids[start : start + length].astype(np.int64))[None]
            mask = torch.from_numpy(pack.targets[start : start + length].copy())[1:]
            with torch.no_grad():
                logits = reference(input_ids=ids).logits[0, :-1]
            total += float(torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")[mask].sum())
            count += int(mask.sum())
            start += length
        sums.append((total, count))
    token_mean = sum(total for total, _ in sums) / sum(count for _, count in sums)
    mean_of_means = float(np.mean([total / count for total, count in sums]))
    assert lines[0]["loss"] == pytest.approx(token_mean, abs=1e-5)
    assert abs(mean_of_means - token_mean) > 1e-3

"""Layouts that fit a number of GPUs, by memory and time of a step."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dasd_megatron.cli.print_layouts import settings
from dasd_megatron.config.load import load_recipe
from dasd_megatron.config.training import MemoryConfig, ParallelConfig, TrainingConfig
from dasd_megatron.models.hf_config import read_config, shape_of
from dasd_megatron.models.parallel_layout import layout_problem
from dasd_megatron.models.shape import ModelShape
from dasd_megatron.planning.layouts import USABLE, FittingLayout, fitting_layouts
from dasd_megatron.planning.step_time import step_time
from tests.conftest import ROOT, TOY
from tests.helpers.published_models import published_model

TRAINING = TrainingConfig(precision="bf16", global_batch=64)
LONG, SHORT = [[65_536]], [[1024] * 2]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in ("gpt-oss-120b", "Qwen3-4B-Instruct-2507", "Qwen3-30B-A3B-Instruct-2507"):
        published_model(folder, name)
    return folder


def shape(published: Path, name: str) -> ModelShape:
    return shape_of(read_config(published / name), published / name)


@pytest.fixture(scope="module")
def dense(published: Path) -> ModelShape:
    return shape(published, "Qwen3-4B-Instruct-2507")


@pytest.fixture(scope="module")
def experts(published: Path) -> ModelShape:
    return shape(published, "Qwen3-30B-A3B-Instruct-2507")


def fitting(model: ModelShape, gpus: int, packs: list[list[int]], **memory: Any) -> list[FittingLayout]:
    return fitting_layouts(
        model, ParallelConfig(), TRAINING, MemoryConfig(**memory), packs, max(map(sum, packs)), gpus, "h100"
    )


def seconds(model: ModelShape, packs: list[list[int]], memory: dict[str, Any] | None = None, **parallel: Any) -> float:
    return step_time(model, ParallelConfig(**parallel), TRAINING, MemoryConfig(**(memory or {})), packs, "h100").total


def test_each_is_possible_and_fits(dense: ModelShape, experts: ModelShape) -> None:
    for model in (dense, experts):
        found = fitting(model, 16, LONG)
        assert len(found) > 5
        for layout in found:
            assert layout.parallel.world_size == 16
            assert layout_problem(model, layout.parallel, TRAINING, 65_536) is None
            assert layout.memory.total <= USABLE * 80 * 2**30
        assert found[0].time.total <= 1.01 * min(layout.time.total for layout in found)


def test_the_papers_recipe_has_the_first(dense: ModelShape) -> None:
    first = fitting(dense, 64, LONG)[0]
    assert first.parallel == ParallelConfig(context=8, data=8)
    assert first.memory_config.recompute == "none"


def test_documents_are_split_no_more_than_needed(dense: ModelShape) -> None:
    assert fitting(dense, 8, [[32_768]])[0].parallel.context == 4
    assert fitting(dense, 8, [[8192]])[0].parallel.context == 1


def test_what_does_not_fit_is_left_out(dense: ModelShape, experts: ModelShape) -> None:
    assert fitting(experts, 8, LONG) == []
    assert fitting(experts, 8, LONG, offload_optimizer=1.0)
    assert all(layout.parallel.data <= 64 for layout in fitting(dense, 256, LONG))


def test_time_of_a_step(dense: ModelShape, experts: ModelShape) -> None:
    base = seconds(dense, LONG, context=8, data=8)
    assert seconds(dense, LONG, context=8, data=4) > 1.8 * base
    assert seconds(dense, LONG, {"recompute": "full"}, context=8, data=8) > 1.25 * base
    selective = seconds(dense, LONG, {"recompute": "selective"}, context=8, data=8)
    assert base < selective < 1.25 * base
    # Computing 2,048 tokens takes less than starting the kernels: more ranks for them gain nothing.
    assert seconds(dense, SHORT, context=8, data=8) > 0.9 * seconds(dense, SHORT, context=2, data=8)
    # Heads that are exchanged take time that a ring hides behind attention, where documents are long.
    assert seconds(dense, LONG, context=8, data=8, context_comm="a2a") > base
    # Across nodes experts' tokens take longer.
    inside = seconds(experts, LONG, context=8, data=8, expert=8)
    assert seconds(experts, LONG, context=8, data=8, expert=16) > inside


def test_the_table(published: Path) -> None:
    def run(*options: str) -> subprocess.CompletedProcess[str]:
        recipe = ["examples/dasd_4b/recipe.yaml", "--stage", "low_temperature", "--layouts", *options]
        places = [f"teacher.model={published}/gpt-oss-120b", f"student.model={published}/Qwen3-4B-Instruct-2507"]
        command = [sys.executable, "tools/train.py", *recipe, *places]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)

    table = run("--gpu", "h100").stdout
    assert "low_temperature on 64 H100: fits 83% of 80 GiB" in table
    assert "\n 1  as the recipe has it\n" in table
    none = run("--gpu", "h100", "--gpus", "1")
    assert none.returncode == 2
    assert "no layout fits; take more GPUs, or set memory.offload_optimizer (1 H100, 83% of 80 GiB)" in none.stderr
    assert "can't be divided so; nearest: " in run("--gpu", "h100", "--gpus", "1000003").stderr
    assert "needs a GPU of compute capability 10.0 (Blackwell)" in run("--gpu", "h100", "training.fp8=mxfp8").stderr
    three_nodes = run("--gpu", "h100", "--gpus", "24").stdout
    assert re.search(r"\n 1  .*parallel.context=(3|6|12|24)", three_nodes)
    slow = run("--gpu", "h100", "parallel.context=64", "parallel.data=1").stdout  # below the ten fastest
    assert re.search(r"\n[1-9]\d  as the recipe has it\n$", slow)
    assert "set training.precision=bf16" in run("--gpu", "h100", "training.precision=fp32").stderr
    assert "--layouts needs --gpu" in run().stderr


@pytest.mark.parametrize(
    "own",
    [
        "parallel.data=2",
        "parallel={context: 2, sequence: false}",
        "memory={recompute: full, recompute_layers: 1}",
    ],
)
def test_printed_settings_choose_the_layout(own: str) -> None:
    """On top of the recipe's, whatever these are."""
    path = TOY / "recipe.yaml"
    recipe = load_recipe(path, [own])
    student = shape_of(read_config(recipe.student.model), recipe.student.model)
    length = recipe.packing.context_length
    found = fitting_layouts(student, recipe.parallel, recipe.training, recipe.memory, [[length]], length, 4, "h100")
    assert len(found) > 2
    for layout in found:
        chosen = load_recipe(path, [own, *settings(layout, recipe).split()])
        assert chosen.parallel == layout.parallel
        assert chosen.memory == layout.memory_config

"""The recipe of a rehearsal, its worst-case packs, and what is concluded from its measurements."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dasd_megatron.config.load import load_recipe, recipe_text
from dasd_megatron.config.recipe import Recipe
from dasd_megatron.curation.worst_case_packs import SHORT, worst_lengths
from dasd_megatron.pipeline.graph import build_steps
from dasd_megatron.planning.costs import Costs
from dasd_megatron.planning.job_resources import job_resources
from dasd_megatron.rehearsal.corrected_plan import (
    CorrectedPlan,
    StepPlan,
    corrected_expectations,
    from_start_to_end,
    with_seen_lengths,
)
from dasd_megatron.rehearsal.machines import ClusterNodes, ThisMachine
from dasd_megatron.rehearsal.measurements import EngineSpeed, Lengths, Measurements, TrainingSpeed
from dasd_megatron.rehearsal.rehearse import recipe_of_rehearsal
from dasd_megatron.rehearsal.rehearsed_recipe import ANSWER_TOKENS, PROBLEMS, PROMPTS, STEPS
from dasd_megatron.rehearsal.verdict import print_verdict
from dasd_megatron.slurm.cluster_config import ClusterConfig
from dasd_megatron.steps.step import Step
from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.out_of_memory import memory_or_error
from tests.conftest import ROOT, TOY

ENGINE = EngineSpeed(
    startup=10.0,
    decoded=1000.0,
    scored=5000.0,
    prompt_tokens=20.0,
    length=50.0,
    sequences=512,
    scored_length=80.0,
    longest=160,
    host_memory_gib=1.0,
)
TRAINING = TrainingSpeed(
    startup=20.0,
    flops=1e9,
    tokens=3000.0,
    mfu=None,
    memory_gib=1.0,
    host_memory_gib=2.0,
    longest_step=2.0,
    longest_save=4.0,
)
# Of an engine that only scores nothing is known of decoding.
SCORER = dataclasses.replace(ENGINE, decoded=0.0, length=0.0, sequences=0)
CLUSTER = ClusterConfig(account="a", partition="p", gpu_hour_price=2.0)


@pytest.fixture(autouse=True)
def in_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def toy(*overrides: str) -> Recipe:
    return load_recipe(TOY / "recipe.yaml", overrides)


def measured(recipe: Recipe, responses: Mapping[str, int] | None = None, seconds: float = 3.0) -> Measurements:
    return Measurements(
        seconds=dict.fromkeys(build_steps(recipe), seconds),
        engines={"teacher": ENGINE, "student": ENGINE, "scorer": SCORER},
        training=TRAINING,
        lengths=Lengths(prompt=20, responses=responses or {}, spread=1.2 if responses else None),
    )


def test_it_has_every_step_of_the_run_on_little_data(tmp_path: Path) -> None:
    recipe = toy(f"run_dir={tmp_path / 'run'}")
    steps = build_steps(recipe)
    own = recipe_of_rehearsal(recipe, ThisMachine())
    assert own.run_dir == tmp_path / "run-rehearsal"
    rehearsal = build_steps(own)
    assert set(steps) < set(rehearsal)
    assert {name for name in rehearsal if name not in steps} == {
        *(f"worst_case_packs_{stage.name}" for stage in recipe.stages),
        *("probe_teacher", "probe_student"),
    }
    for name, step in steps.items():
        assert rehearsal[name].group == step.group
        assert rehearsal[name].processes == step.processes
    apart = recipe_of_rehearsal(toy("engine.scorer.max_batch=7"), ThisMachine())
    assert "probe_scorer" in build_steps(apart)
    assert rehearsal["train_low_temperature"].source("packs").name == "worst_case_packs_low_temperature"
    assert own.prompts.train is not None
    assert own.prompts.train.limit == PROMPTS
    assert own.evaluation.benchmarks[0].limit == PROBLEMS
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe_text(own))
    assert {name: step.key for name, step in build_steps(load_recipe(file)).items()} == {
        name: step.key for name, step in rehearsal.items()
    }


def test_what_the_run_needs_stays_as_it_is() -> None:
    """Lengths, engines, layout, precision and nodes; quotas by domain, which few problems can't fill, go."""
    recipe = toy(
        "parallel={data: 1, tensor: 2}",
        "memory.recompute=full",
        "launch.training={nodes: 2, time: '08:00:00'}",
        "launch.steps={sample_low_temperature: {nodes: 3, time: '00:30:00'}}",
        "stages.0.prompts={math: 50}",
        "stages.0.selection={total: {math: 40}}",
        "selection.total=100",
        "training.keep_every=200",
        "prompts.train.limit=5",
    )
    own = recipe_of_rehearsal(recipe, ThisMachine())
    for section in ("teacher", "student", "engine", "parallel", "memory", "plugins"):
        assert getattr(own, section) == getattr(recipe, section)
    assert own.packing.context_length == recipe.packing.context_length
    assert own.sampling.max_tokens == recipe.sampling.max_tokens
    assert own.training.global_batch == recipe.training.global_batch
    assert own.launch.training.nodes == 2
    assert own.launch.training.time == "01:00:00"
    assert own.launch.sampling.nodes == 1  # for steps of one shard
    assert own.launch.steps["sample_low_temperature"].written() == {"time": "00:30:00"}
    assert own.prompts.train is not None
    assert own.prompts.train.limit == 5
    assert own.selection.total is None
    first = own.stages[0]
    assert first.kind == "sampled"
    assert first.prompts is None
    assert first.selection.written() == {}
    assert [stage.training.written()["steps"] for stage in own.stages] == [STEPS, 2, 2]


def test_other_settings_are_rehearsed_again() -> None:
    """Those that shape no result, too: stages and probes run again, what made their data doesn't."""
    steps = build_steps(recipe_of_rehearsal(toy(), ThisMachine()))
    for override in ("memory.recompute=full", "engine.max_batch=64", "launch.training.image=other"):
        other = build_steps(recipe_of_rehearsal(toy(override), ThisMachine()))
        for name, step in steps.items():
            again = name.startswith(("probe", "worst_case", "train", "export"))
            if step.kind.name in ("train", "probe", "sample"):
                assert (step.key != other[name].key) == again, (override, name)
    elsewhere = build_steps(recipe_of_rehearsal(toy(), ClusterNodes(toy(), CLUSTER)))
    assert elsewhere["train_low_temperature"].key != steps["train_low_temperature"].key


def test_what_a_verdict_asks_for_is_not_rehearsed_again() -> None:
    """Time limits shape no number, and a price none that is measured."""

    def settings(recipe: Recipe, cluster: ClusterConfig) -> str:
        rehearsal = recipe_of_rehearsal(recipe, ClusterNodes(recipe, cluster)).rehearsal
        assert rehearsal is not None
        return rehearsal.setting

    changed = toy("launch.grace_period_seconds=7", "launch.retries=1", "launch.training.time='01:00:00'")
    assert settings(changed, CLUSTER) == settings(toy(), CLUSTER.model_copy(update={"gpu_hour_price": 3.0}))
    assert settings(toy("launch.training.nodes=2"), CLUSTER) != settings(toy(), CLUSTER)


def test_the_probe_of_servers_elsewhere_needs_no_nodes_for_engines() -> None:
    servers = "engine.teacher={name: server, server: {endpoints: ['http://node1:8000/v1']}}"
    own = recipe_of_rehearsal(toy(servers, "launch.sampling.nodes=8"), ThisMachine())
    assert "nodes" not in own.launch.steps["probe_teacher"].written()
    assert own.launch.steps["probe_student"].written()["nodes"] == 8


def test_probes_get_the_nodes_of_the_widest_step() -> None:
    recipe = toy(
        "launch={sampling: {nodes: 2}, steps: {sample_high_temperature: {nodes: 8, image: other}}}",
        "engine.teacher.tensor_parallel=2",
    )
    own = recipe_of_rehearsal(recipe, ClusterNodes(recipe, CLUSTER))
    assert own.rehearsal is not None
    assert own.rehearsal.engines["teacher"] == 8 * 4
    assert own.rehearsal.engines["student"] == 2 * 8
    steps = build_steps(own)
    nodes = {name: job_resources(own, step, 8).nodes for name, step in steps.items()}
    assert nodes["probe_teacher"] == 8
    assert job_resources(own, steps["probe_teacher"], 8).image == "other"
    assert nodes["probe_student"] == 2
    assert nodes["sample_high_temperature"] == nodes["answer_teacher_arithmetic"] == 1


def test_decoding_is_measured_at_the_lengths_of_the_run() -> None:
    """As many sequences as an engine has room for; where the GPUs aren't known, nothing is."""
    recipe = toy("stages.1.expected_response_tokens=100", "expected.prompt_tokens=20", "expected.length_spread=1.5")
    own = recipe_of_rehearsal(recipe, ClusterNodes(recipe, CLUSTER))
    assert own.rehearsal is not None
    assert own.rehearsal.typical["teacher"] == (20 + 1.5 * 160 / 2, 512)
    assert "scorer" not in own.rehearsal.typical
    assert build_steps(own)["probe_teacher"].config.typical == (140, 512)  # type: ignore[attr-defined]
    here = recipe_of_rehearsal(recipe, ThisMachine())
    assert here.rehearsal is not None
    assert here.rehearsal.typical == {}


def test_long_answers_are_cut_and_probed(tmp_path: Path) -> None:
    problems = tmp_path / "aime.jsonl"
    problems.write_text("{}\n")
    recipe = toy(f"evaluation={{benchmarks: [{{name: aime24, path: {problems}}}]}}", "launch.retries=0")
    own = recipe_of_rehearsal(recipe, ThisMachine())
    assert own.launch.retries == 1
    steps = build_steps(own)
    assert steps["answer_student_aime24"].config.max_tokens == ANSWER_TOKENS  # type: ignore[attr-defined]
    assert steps["probe_student"].config.longest == 102_400  # type: ignore[attr-defined]


def test_turns_without_benchmarks() -> None:
    """The student writes in the teacher's step alone."""
    recipe = toy("evaluation.benchmarks=[]", "mixed_policy.method=turns", "engine.scorer.max_batch=7")
    assert {"probe_teacher", "probe_scorer"} == {
        name for name in build_steps(recipe_of_rehearsal(recipe, ThisMachine())) if name.startswith("probe")
    }


def test_lengths_that_the_recipe_gives_stay() -> None:
    found = measured(toy(), {"low_temperature": 50, "high_temperature": 100})
    recipe = toy("stages.0.expected_response_tokens=70", "expected.prompt_tokens=30")
    seen = with_seen_lengths(recipe, found)
    assert [getattr(stage, "expected_response_tokens", None) for stage in seen.stages] == [70, 100, None]
    assert seen.expected.prompt_tokens == 30
    assert seen.expected.length_spread == 1.2


@pytest.mark.parametrize("stages", ["[]", "null"])
def test_recipes_without_stages_or_with_the_papers(stages: str) -> None:
    """Those of the default aren't written down in the recipe."""
    content = yaml.safe_load((TOY / "recipe.yaml").read_text())
    del content["stages"]
    recipe = Recipe.model_validate(content | ({"stages": []} if stages == "[]" else {}))
    own = recipe_of_rehearsal(recipe, ThisMachine())
    assert [stage.name for stage in own.stages] == [stage.name for stage in recipe.stages]
    build_steps(own)


@given(st.integers(1, 10_000), st.integers(0, 5))
def test_worst_case_packs_are_full(length: int, number: int) -> None:
    lengths = worst_lengths(length, number)
    assert sum(lengths) == length
    assert len(lengths) == 1 or all(size <= SHORT for size in lengths)
    assert number % 2 == 1 or len(lengths) == 1


def test_a_recipe_as_a_file_gives_the_same_steps(tmp_path: Path) -> None:
    """A benchmark's own length goes before the default of evaluation.max_tokens, and not before what is written there."""
    problems = tmp_path / "aime.jsonl"
    problems.write_text("{}\n")
    recipe = toy(f"evaluation={{benchmarks: [{{name: aime24, path: {problems}}}]}}")
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe_text(recipe))
    again = build_steps(load_recipe(file))
    assert {name: step.key for name, step in again.items()} == {
        name: step.key for name, step in build_steps(recipe).items()
    }


def planned(recipe: Recipe, found: Measurements) -> tuple[Recipe, dict[str, Step], dict[str, StepPlan]]:
    """The recipe with the lengths that were seen, its steps, and what they take on this machine."""
    seen = with_seen_lengths(recipe, found)
    steps = build_steps(seen)
    return seen, steps, CorrectedPlan(seen, found, ThisMachine()).of(steps)


def test_seconds_of_a_step() -> None:
    """Start, and then as many tokens as the recipe says at the speed that was measured."""
    recipe = toy()
    found = measured(recipe, {"low_temperature": 50, "high_temperature": 100})
    seen, steps, plans = planned(recipe, found)
    # 2,000 prompts, four responses each, on two engines.
    assert plans["sample_low_temperature"].seconds == pytest.approx(10 + 8000 * 50 / 2 / 1000)
    assert plans["sample_high_temperature"].seconds == pytest.approx(10 + 8000 * 100 / 2 / 1000)
    assert plans["score_low_temperature"].seconds == pytest.approx(10 + 8000 * (20 + 50) / 2 / 5000)
    assert plans["prompts_train"].seconds == 3.0
    packs = Costs(seen, "h100")._estimates.packs(steps["pack_low_temperature"])
    shape = Costs(seen, "h100")._estimates.of(steps["train_low_temperature"]).student_shape()
    flops = packs.flops(shape, isolated=True) * 12  # epochs
    assert plans["train_low_temperature"].seconds == pytest.approx(20 + flops / 1e9, rel=0.02)
    assert from_start_to_end(steps, plans, side_by_side=False) == pytest.approx(
        sum(plan.seconds for plan in plans.values())
    )


def test_steps_side_by_side() -> None:
    """The longest way from the first step to the last."""
    recipe = toy()
    found = measured(recipe, {"low_temperature": 50, "high_temperature": 50})
    _, steps, plans = planned(recipe, found)
    longest = from_start_to_end(steps, plans, side_by_side=True)
    chain = ["benchmark_arithmetic", "prompts_train", "sample_low_temperature", "filter_low_temperature"]
    assert sum(plans[name].seconds for name in chain) < longest < from_start_to_end(steps, plans, False)


def test_the_pasted_section_gives_the_corrected_hours() -> None:
    """On GPUs: what a dry run then plans is what was measured, but for the time that starting takes."""
    recipe = toy("launch.replicas=null", "training.precision=bf16")
    found = measured(recipe, {"low_temperature": 50, "high_temperature": 100})
    seen, machines = with_seen_lengths(recipe, found), ClusterNodes(recipe, CLUSTER)
    steps = build_steps(seen)
    plans = CorrectedPlan(seen, found, machines).of(steps)
    expected = corrected_expectations(seen, plans)
    pasted = toy(
        "launch.replicas=null",
        "training.precision=bf16",
        "expected=" + json.dumps(expected.model_dump(exclude_unset=True)),
        "stages.0.expected_response_tokens=50",
        "stages.1.expected_response_tokens=100",
    )
    costs = Costs(pasted, "h100")
    again = build_steps(pasted)
    names = [name for name, plan in plans.items() if plan.gpus]
    assert {"train_mixed_policy", "score_low_temperature", "answer_teacher_arithmetic"} < set(names)
    hours = [costs.of(again[name], job_resources(pasted, again[name], 8)).hours or 0.0 for name in names]
    assert 3600 * sum(hours) == pytest.approx(
        sum(plans[name].decoding + plans[name].computing for name in names), rel=0.02
    )


def test_the_verdict_names_what_to_change(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = toy("launch.grace_period_seconds=5")
    found = measured(recipe)
    assert print_verdict(recipe, found, ThisMachine()) == 0
    assert "verdict: every step works" in capsys.readouterr().out
    assert print_verdict(recipe, found, ClusterNodes(recipe, CLUSTER)) == 2
    out = capsys.readouterr().out
    assert "set launch.grace_period_seconds to 10" in out
    assert "verdict: change this before you start the run" in out
    assert "at 2 a GPU-hour" in out
    full = dataclasses.replace(found, training=dataclasses.replace(TRAINING, memory_gib=79.0))
    recipe = toy()
    assert print_verdict(recipe, full, ClusterNodes(recipe, CLUSTER)) == 2
    assert "a rank took 79.0 of 80 GiB; raise parallel.context" in capsys.readouterr().out


def test_what_is_not_known_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = toy("prompts.train.limit=null")
    assert print_verdict(recipe, measured(recipe), ThisMachine()) == 0
    out = capsys.readouterr().out
    assert "the sums leave out what is unknown:\n  how many prompts there are: set prompts.train.limit" in out


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CUDA error: out of memory\nmore"), RuntimeError("ALLOC_FAILED")]
)
def test_out_of_memory_is_a_message(error: Exception) -> None:
    with pytest.raises(UserError, match=r"^probe: out of memory.*; lower it$"), memory_or_error("probe", "lower it"):
        raise error


def test_other_errors_of_memory_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="illegal"), memory_or_error("probe", "lower it"):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

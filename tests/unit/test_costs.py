"""Costs before a run: exact where arithmetic says so, counted where something was counted, and never the wrong way round."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dasd_megatron.artifacts.writer import ArtifactWriter
from dasd_megatron.config.gpu_specs import GIB, GPU_SPECS
from dasd_megatron.config.load import load_recipe
from dasd_megatron.config.recipe import Recipe
from dasd_megatron.config.sampling import EngineConfig
from dasd_megatron.models.flops import training_flops
from dasd_megatron.models.hf_config import shape_of
from dasd_megatron.models.parameter_count import parameter_count
from dasd_megatron.models.shape import ModelShape
from dasd_megatron.pipeline.graph import build_steps
from dasd_megatron.planning.costs import Costs
from dasd_megatron.planning.estimates import Estimates
from dasd_megatron.planning.job_resources import job_resources
from dasd_megatron.sampling.decoding_speed import cache_bytes, tokens_per_second, weight_bytes
from dasd_megatron.slurm.cluster_config import ClusterConfig
from dasd_megatron.slurm.dry_run import plan
from dasd_megatron.slurm.experiment import jobs_of
from dasd_megatron.steps.cost_estimate import Cost, Documents, Unknown
from dasd_megatron.steps.step import Step
from dasd_megatron.utils.errors import UserError
from tests.conftest import ROOT, TOY

QWEN3_4B = ModelShape(36, 2560, 32, 8, 128, 9728, 151_936, tied=True, qk_norm=True)
GPT_OSS_120B = ModelShape(
    36, 2880, 64, 8, 64, 2880, 201_088, experts=128, top_k=4, biases=True, window=128, windowed_layers=18
)
# 1,000 prompts, 2 responses each of 100 tokens and 1 chosen; packs of ten documents.
SIZES = [
    "prompts.train.limit=1000",
    "evaluation.benchmarks.0.limit=100",
    "sampling={responses_per_prompt: 2, max_tokens: 160, prompts_per_shard: 250}",
    "expected={prompt_tokens: 28, response_tokens: 100, length_spread: 1, truncated_answers: 0.5, kept_continuations: 0.5}",
    "packing.context_length=1280",
    "training.epochs=2",
    "training.global_batch=4",
    "mixed_policy.prompts=400",
    "stages.2.training.epochs=1",
]


@pytest.fixture(autouse=True)
def in_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def a_run(tmp_path: Path, *overrides: str) -> tuple[Recipe, dict[str, Step]]:
    recipe = load_recipe(TOY / "recipe.yaml", [*SIZES, f"run_dir={tmp_path / 'run'}", *overrides])
    return recipe, build_steps(recipe)


def cost(recipe: Recipe, step: Step, gpus_per_node: int = 8) -> Cost:
    return Costs(recipe, "h100").of(step, job_resources(recipe, step, gpus_per_node))


def finish(step: Step, **counts: int) -> None:
    ArtifactWriter(step.folder, {"step": step.name}).finish(counts=counts)


def test_amounts_follow_from_step_to_step(tmp_path: Path) -> None:
    recipe, steps = a_run(tmp_path)
    of = {name: cost(recipe, step) for name, step in steps.items()}
    made = {name: (cost.amount, cost.unit) for name, cost in of.items()}
    for stage in ("low_temperature", "high_temperature"):
        assert made[f"sample_{stage}"] == made[f"filter_{stage}"] == made[f"score_{stage}"] == (2000, "responses")
        assert (of[f"sample_{stage}"].tokens_in, of[f"sample_{stage}"].tokens_out) == (2000 * 28, 2000 * 100)
        assert (of[f"score_{stage}"].tokens_in, of[f"select_{stage}"].tokens_out) == (2000 * 128, 1000 * 128)
        assert made[f"select_{stage}"] == (1000, "responses")
        assert made[f"pack_{stage}"] == (100, "packs")
        assert made[f"train_{stage}"] == (50, "steps")  # 2 epochs x 100 packs / 4
        assert of[f"train_{stage}"].tokens_in == 2 * 1000 * 128
    # Half of the answers are truncated, at 1.5 x 100 tokens.
    assert made["rollout_mixed_policy"] == (400, "responses")
    assert of["rollout_mixed_policy"].tokens_out == 200 * 150 + 200 * 100
    # The teacher continues from a mean place of 3/4 of them, with a whole response.
    assert made["continue_mixed_policy"] == (200, "responses")
    assert of["continue_mixed_policy"].tokens_in == 200 * (28 + 112.5)
    assert of["continue_mixed_policy"].tokens_out == 200 * 100
    # Half of those are kept, and 2.6 rows of the stage before for each.
    assert made["filter_mixed_policy"] == (100, "responses")
    assert of["pack_mixed_policy"].tokens_in == 100 * (28 + 112.5 + 100) + 260 * 128
    assert made["pack_mixed_policy"] == (45, "packs")  # 57,330 tokens
    assert made["train_mixed_policy"] == (12, "steps")
    assert made["answer_teacher_arithmetic"] == (100 * (1 + 2 * 4), "answers")
    assert not any(cost.counted for cost in of.values())


def test_amounts_of_turns(tmp_path: Path) -> None:
    recipe, steps = a_run(tmp_path, "mixed_policy.method=turns")
    of = {name: cost(recipe, step) for name, step in steps.items()}
    written = of["turns_mixed_policy"]
    assert (written.amount, written.tokens_in, written.tokens_out) == (400, 400 * 28, 400 * 100)
    assert of["filter_mixed_policy"].amount == 400
    assert written.hours is not None
    assert of["pack_mixed_policy"].tokens_in == 400 * 128 + 1000 * 128  # 2.6 rows for each would be 1,040


def test_storage(tmp_path: Path) -> None:
    recipe, steps = a_run(
        tmp_path, "training.precision=bf16", "training.keep_checkpoints=3", "training.keep_every=null"
    )
    student = parameter_count(shape_of(json.loads((TOY / "student/config.json").read_text()), TOY / "student"))
    # Bytes of a token: text 1, id 1.25, log-probability 3.4, start 0.25, rank 0.4. Each step's are those that it adds.
    assert cost(recipe, steps["sample_low_temperature"]).bytes == pytest.approx(2000 * (28 * 2.25 + 100 * 5.65))
    assert cost(recipe, steps["filter_low_temperature"]).bytes == pytest.approx(2000 * (28 * 1.25 + 100 * 2.75))
    assert cost(recipe, steps["score_low_temperature"]).bytes == pytest.approx(2000 * 100 * 3.8)
    assert cost(recipe, steps["select_low_temperature"]).bytes == 2000 * 60
    assert cost(recipe, steps["pack_low_temperature"]).bytes == pytest.approx(1000 * 128 * 1.25)
    stage = cost(recipe, steps["train_low_temperature"])
    assert (stage.bytes, stage.checkpoint_bytes) == (2 * student, 3 * 14 * student)
    assert cost(recipe, steps["export_low_temperature"]).bytes == 2 * student
    recipe, steps = a_run(tmp_path, "training.precision=fp32", "training.save_every=10", "training.keep_every=20")
    stage = cost(recipe, steps["train_low_temperature"])
    assert (stage.bytes, stage.checkpoint_bytes) == (4 * student + 2 * 12 * student, 2 * 12 * student)


def test_gpu_hours(tmp_path: Path) -> None:
    recipe, steps = a_run(tmp_path, "engine={max_batch: 64}", "launch.replicas=null", "launch.sampling.nodes=2")
    shape = shape_of(json.loads((TOY / "student/config.json").read_text()), TOY / "student")
    stage = cost(recipe, steps["train_low_temperature"])
    seconds = training_flops(shape, [128]) * 2000 / (2 * 989e12 * 0.4)
    assert stage.hours == pytest.approx(seconds / 3600)
    assert stage.gpu_hours == pytest.approx(2 * seconds / 3600)  # parallel.data=2
    # 1,000 prompts are 4 shards, so 4 of the 16 engines have work; all 16 GPUs are held.
    score = cost(recipe, steps["score_low_temperature"])
    assert score.hours == pytest.approx(2000 * training_flops(shape, [128]) / 3 / (4 * 989e12 * 0.4) / 3600)
    assert score.gpu_hours == pytest.approx(16 * (score.hours or 0))
    teacher = shape_of(json.loads((TOY / "teacher/config.json").read_text()), TOY / "teacher")
    engine = EngineConfig(max_batch=64)
    rate = tokens_per_second(
        teacher, weight_bytes(TOY / "teacher", teacher, engine), engine, GPU_SPECS["h100"], 28 + 50, 500, 0.4
    )
    read = 2000 * training_flops(teacher, [28]) / 3 / (4 * 989e12 * 0.4)
    sample = cost(recipe, steps["sample_low_temperature"])
    assert sample.hours == pytest.approx((2000 * 100 / (4 * rate) + read) / 3600)
    assert cost(recipe, steps["filter_low_temperature"]).gpu_hours is None
    recipe, steps = a_run(tmp_path, "launch.data={nodes: 2, cpus_per_node: 3}")
    assert cost(recipe, steps["filter_low_temperature"]).hours == pytest.approx(
        2000 * 128 / 450e3 / 4 / 3600
    )  # 4 shards
    assert cost(recipe, steps["pack_low_temperature"]).hours == pytest.approx(1000 * 128 / 15e6 / 3600)  # 1 window
    assert cost(recipe, steps["sample_low_temperature"], gpus_per_node=0).gpu_hours is None


def test_counted_goes_before_expected(tmp_path: Path) -> None:
    recipe, steps = a_run(tmp_path)
    finish(steps["prompts_train"], prompts=900)
    assert cost(recipe, steps["sample_low_temperature"]).amount == 1800
    finish(steps["sample_low_temperature"], responses=1800, tokens=1800 * 60, truncated=0)
    scored = cost(recipe, steps["score_low_temperature"])
    assert (scored.tokens_in, scored.counted) == (1800 * 88, False)
    finish(steps["filter_low_temperature"], responses=1500, dropped=300)
    scored = cost(recipe, steps["score_low_temperature"])
    assert (scored.amount, scored.tokens_in, scored.counted) == (1500, 1500 * 88, True)
    finish(steps["select_low_temperature"], responses=700, prompts=750, candidates=1500)
    assert cost(recipe, steps["pack_low_temperature"]).tokens_in == 700 * 88
    finish(steps["pack_low_temperature"], documents=700, packs=77, tokens=70_000, trained_tokens=60_000)
    stage = cost(recipe, steps["train_low_temperature"])
    assert (stage.amount, stage.tokens_in, stage.counted) == (39, 39 * 4 * 70_000 / 77, True)
    assert cost(recipe, steps["sample_high_temperature"]).amount == 1800
    assert not cost(recipe, steps["train_high_temperature"]).counted


def test_unknown_number_of_prompts(tmp_path: Path) -> None:
    recipe, steps = a_run(tmp_path, "prompts.train.limit=null", "stages.1.prompts=300")
    assert cost(recipe, steps["sample_low_temperature"]) == Cost(
        missing="how many prompts there are: set prompts.train.limit"
    )
    assert cost(recipe, steps["train_low_temperature"]).missing == "how many prompts there are: set prompts.train.limit"
    assert cost(recipe, steps["sample_high_temperature"]).amount == 600  # its stage says how many
    lines = plan(
        recipe,
        jobs_of(recipe, steps, ClusterConfig(account="a", partition="p")),
        ClusterConfig(account="a", partition="p"),
    )
    assert "  how many prompts there are: set prompts.train.limit" in lines
    assert sum(" unknown " in f"{line} " for line in lines) >= 6
    with pytest.raises(Unknown):
        Estimates(recipe).documents(steps["sample_low_temperature"])


def test_models_that_are_on_another_machine_leave_tokens(tmp_path: Path) -> None:
    there = ["teacher.model=/there/teacher", "student.model=/there/student"]
    recipe = load_recipe(TOY / "recipe.yaml", [*SIZES, f"run_dir={tmp_path}", *there])
    steps = build_steps(recipe, remote=True)
    stage = cost(recipe, steps["train_low_temperature"])
    assert stage.tokens_in == 2 * 1000 * 128
    assert stage.hours is stage.bytes is None
    assert stage.missing == "the sizes of /there/student, which isn't on this machine"


def test_decoding_is_bound_by_what_memory_moves() -> None:
    """gpt-oss-120b in MXFP4 on two H100s at 9,100 tokens, by hand."""
    engine = EngineConfig(tensor_parallel=2, max_batch=256)
    cache = 2 * 8 * 64 * 2 * (18 * 9100 + 18 * 128)  # K and V, heads, head_dim, bytes; half the layers see 128 tokens
    assert cache_bytes(GPT_OSS_120B, engine, 9100) == cache
    step = (65.2e9 + 256 * cache) / (2 * 3.35e12 * 0.4)
    rate = tokens_per_second(GPT_OSS_120B, 65.2e9, engine, GPU_SPECS["h100"], 9100, 10_000, 0.4)
    assert rate == pytest.approx(256 / step)
    # On one there is room for a few sequences only.
    alone = engine.model_copy(update={"tensor_parallel": 1})
    room = (0.9 * 80 * GIB - 65.2e9) // cache
    assert 0 < room < 256 / 4
    rate = tokens_per_second(GPT_OSS_120B, 65.2e9, alone, GPU_SPECS["h100"], 9100, 10_000, 0.4)
    assert rate == pytest.approx(room / ((65.2e9 + room * cache) / (3.35e12 * 0.4)))
    with pytest.raises(UserError, match=r"engine\.tensor_parallel=1: weights of 77 GB leave no room"):
        tokens_per_second(GPT_OSS_120B, 77e9, alone, GPU_SPECS["h100"], 9100, 10_000, 0.4)


@given(
    length=st.floats(10, 100_000),
    longer=st.floats(1, 5),
    sequences=st.integers(1, 4096),
    gpus=st.sampled_from([2, 4, 8]),
    share=st.floats(0.1, 0.9),
)
def test_decoding_is_never_faster_for_more_work(
    length: float, longer: float, sequences: int, gpus: int, share: float
) -> None:
    engine = EngineConfig(tensor_parallel=gpus)

    def rate(**changed: Any) -> float:
        settings = {"length": length, "sequences": sequences, "mbu": share, "gpu": GPU_SPECS["h100"], **changed}
        return tokens_per_second(QWEN3_4B, 8e9, engine, **settings)

    assert rate(length=length * longer) <= rate() * (1 + 1e-9)
    assert rate(sequences=sequences + 1) >= rate() * (1 - 1e-9)
    assert rate(mbu=min(1.0, share * longer)) >= rate()
    assert rate(gpu=GPU_SPECS["h200"]) >= rate()


@pytest.mark.parametrize("step", ["sample_low_temperature", "score_low_temperature", "train_low_temperature"])
def test_costs_grow_with_what_is_asked_for(tmp_path: Path, step: str) -> None:
    def gpu_hours(*overrides: str) -> float:
        recipe, steps = a_run(tmp_path, "launch.replicas=1", *overrides)
        found = cost(recipe, steps[step]).gpu_hours
        assert found is not None
        return found

    base = gpu_hours()
    assert gpu_hours("prompts.train.limit=3000") > base
    assert gpu_hours("expected.response_tokens=150") > base
    assert gpu_hours("expected.mfu=0.2") > base
    assert gpu_hours("sampling.responses_per_prompt=4") >= base
    assert gpu_hours("prompts.train.limit=3000", "stages.0.prompts=1000") == base


def test_costs_are_for_the_clusters_gpus(tmp_path: Path) -> None:
    recipe, steps = a_run(tmp_path)
    slow, fast = (Costs(recipe, gpu) for gpu in ("h100", "b200"))
    for step in (steps["sample_low_temperature"], steps["train_low_temperature"]):
        resources = job_resources(recipe, step, 8)
        assert (fast.of(step, resources).hours or 0) < (slow.of(step, resources).hours or 0)
    cluster = ClusterConfig(account="a", partition="p", gpu="b200")
    assert any("B200s reach 40%" in line for line in plan(recipe, jobs_of(recipe, steps, cluster), cluster))


def test_weights_by_index_then_files_then_parameters(tmp_path: Path) -> None:
    assert weight_bytes(tmp_path, QWEN3_4B, EngineConfig()) == 2 * parameter_count(QWEN3_4B)
    assert weight_bytes(tmp_path, QWEN3_4B, EngineConfig(dtype="float32")) == 4 * parameter_count(QWEN3_4B)
    (tmp_path / "model-1.safetensors").write_bytes(b"x" * 100)
    (tmp_path / "model-2.safetensors").write_bytes(b"x" * 50)
    assert weight_bytes(tmp_path, QWEN3_4B, EngineConfig()) == 150
    (tmp_path / "model.safetensors.index.json").write_text('{"metadata": {"total_size": 7}, "weight_map": {}}')
    assert weight_bytes(tmp_path, QWEN3_4B, EngineConfig()) == 7


def test_what_is_expected_enters_no_key(tmp_path: Path) -> None:
    _, steps = a_run(tmp_path)
    _, others = a_run(tmp_path, "expected={response_tokens: 7, mfu: 0.1}")
    assert {name: step.key for name, step in steps.items()} == {name: step.key for name, step in others.items()}


@given(st.lists(st.integers(1, 4000), min_size=1, max_size=20))
def test_documents_cost_by_their_lengths_and_the_squares_of_them(lengths: list[int]) -> None:
    """As much as document by document, from their number, their mean, and the spread of their lengths alone."""
    mean = sum(lengths) / len(lengths)
    spread = sum(length**2 for length in lengths) / len(lengths) / mean**2
    documents = Documents(len(lengths), len(lengths), 0, mean, spread=spread)
    assert documents.flops(QWEN3_4B) == pytest.approx(training_flops(QWEN3_4B, lengths))
    # While they are written, each token by token, a sequence has this length on average.
    written = sum(length * length / 2 for length in lengths) / sum(lengths)
    assert documents.length_while_written == pytest.approx(written)


def test_a_stage_may_expect_responses_of_its_own_length(tmp_path: Path) -> None:
    recipe, steps = a_run(tmp_path, "stages.0.expected_response_tokens=50")
    of = {name: cost(recipe, step) for name, step in steps.items()}
    assert of["sample_low_temperature"].tokens_out == 2000 * 50
    assert of["pack_low_temperature"].tokens_in == 1000 * 78
    assert of["sample_high_temperature"].tokens_out == 2000 * 100
    _, plain = a_run(tmp_path)
    assert {name: step.key for name, step in steps.items()} == {name: step.key for name, step in plain.items()}


def test_the_plan_says_which_steps_are_longer_than_their_limit(tmp_path: Path) -> None:
    cluster = ClusterConfig(account="a", partition="p", gpu="h100")

    def line_of(*overrides: str) -> str:
        recipe, steps = a_run(tmp_path, *overrides)
        lines = plan(recipe, jobs_of(recipe, steps, cluster), cluster)
        return next((line for line in lines if "longer than the limit" in line), "")

    assert line_of() == ""
    assert "train_low_temperature (" in line_of("expected.mfu=1e-9")


def test_documents_not_isolated_cost_the_square_of_the_pack(tmp_path: Path) -> None:
    recipe, steps = a_run(tmp_path)
    packs = Estimates(recipe).packs(steps["pack_low_temperature"])
    assert packs.flops(QWEN3_4B, isolated=True) == 1000 * training_flops(QWEN3_4B, [128])
    assert packs.flops(QWEN3_4B, isolated=False) == 100 * training_flops(QWEN3_4B, [1280])
    assert replace(packs, count=50).tokens == packs.tokens

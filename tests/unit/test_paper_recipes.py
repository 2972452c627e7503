"""The recipes of the paper's runs: they load, fit on their GPUs, and cost what docs/paper.md estimates."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from dasd_megatron.config.gpu_specs import GIB
from dasd_megatron.config.load import load_recipe
from dasd_megatron.pipeline.graph import build_steps
from dasd_megatron.planning.costs import Costs
from dasd_megatron.planning.job_resources import job_resources
from dasd_megatron.rehearsal.machines import ClusterNodes
from dasd_megatron.rehearsal.rehearse import recipe_of_rehearsal
from dasd_megatron.slurm.cluster_config import load_cluster
from dasd_megatron.slurm.experiment import jobs_of
from dasd_megatron.steps.cost_estimate import Cost
from dasd_megatron.steps.step import Step
from tests.conftest import ROOT
from tests.helpers.published_models import published_model

pytestmark = pytest.mark.network
STUDENTS = {"dasd_4b": "Qwen3-4B-Instruct-2507", "dasd_30b_a3b": "Qwen3-30B-A3B-Instruct-2507"}
BENCHMARKS = ("aime24", "aime25", "gpqa_diamond", "livecodebench_v5", "livecodebench_v6")
PAGE = (ROOT / "docs" / "paper.md").read_text()
# As each recipe's first lines say.
ONE_NODE = {
    "dasd_4b": "parallel.data=1 launch.sampling.nodes=1",
    "dasd_30b_a3b": "parallel.data=1 launch.sampling.nodes=1 memory.offload_optimizer=1",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for name in ("gpt-oss-120b", *STUDENTS.values()):
        published_model(folder, name)
    return folder


@pytest.fixture(autouse=True)
def in_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def recipe_file(name: str) -> Path:
    return Path("examples") / name / "recipe.yaml"


def local(name: str, models: Path) -> list[str]:
    """What differs here: where models and problems lie."""
    return [
        f"teacher.model={models / 'gpt-oss-120b'}",
        f"student.model={models / STUDENTS[name]}",
    ]


def tool(name: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, f"tools/{name}.py", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", STUDENTS)
@pytest.mark.parametrize("nodes", [8, 1])
def test_dry_run(name: str, nodes: int, models: Path) -> None:
    overrides = ONE_NODE[name].split() if nodes == 1 else []
    cluster = ["--executor", "slurm", "--cluster", "examples/cluster.yaml", "--dry-run"]
    out = tool("launch", str(recipe_file(name)), *cluster, *local(name, models), *overrides)
    table = {line.split()[0]: line for line in out.splitlines() if re.match(r"\w+ +\d x \d ", line)}
    assert f"{nodes} x 8 " in table["train_low_temperature"]
    assert f"{nodes} x 8 " in table["sample_low_temperature"]
    assert "1 x 0 " in table["filter_low_temperature"]
    assert " unknown " not in out
    assert ("longer than the limit" in out) == (nodes == 1)
    assert out.count("#SBATCH --nodes=") == len(table)
    if (name, nodes) == ("dasd_30b_a3b", 8):
        assert "GPU-hours: 2,468.0;" in out
        assert "prints, by the same command, 2,468.0 GPU-hours" in PAGE
    if (name, nodes) == ("dasd_4b", 8):
        printed = PAGE.partition("```text\n")[2].partition("```")[0]
        assert len(printed.splitlines()) > len(table)
        lines = out.splitlines()
        for line in printed.splitlines():
            assert any(real.startswith(line) for real in lines), line


@pytest.mark.parametrize("layout", ["", "one node"])
@pytest.mark.parametrize(
    ("name", "stage"),
    [
        ("dasd_4b", "low_temperature"),
        ("dasd_4b", "high_temperature"),
        ("dasd_4b", "mixed_policy"),
        ("dasd_30b_a3b", "low_temperature"),
    ],
)
def test_stages_fit_on_h100s(name: str, stage: str, layout: str, models: Path) -> None:
    overrides = ONE_NODE[name].split() if layout else []
    arguments = ["--stage", stage, "--estimate", "--gpu", "h100", *local(name, models), *overrides]
    out = tool("train", str(recipe_file(name)), *arguments)
    found = re.search(r"in all +│ +([\d.]+) GiB", out)
    assert found is not None
    assert f"| {found[1]} |" in PAGE
    assert float(found[1]) < 0.83 * 80  # room for communication, fragmentation, and experts that are chosen more often
    assert "packs of 65,536 tokens" in out
    assert "less than 17%" not in out


def test_one_node_is_what_the_recipes_say() -> None:
    for name, overrides in ONE_NODE.items():
        assert overrides in recipe_file(name).read_text()


def test_both_recipes_sample_the_same_responses(models: Path) -> None:
    """So that the second run can take them over from the first."""
    small, large = (build_steps(load_recipe(recipe_file(name), local(name, models))) for name in STUDENTS)
    assert small["sample_low_temperature"].key == large["sample_low_temperature"].key
    assert small["score_low_temperature"].key != large["score_low_temperature"].key


def test_stages_of_the_mixture_of_experts_can_be_added(models: Path) -> None:
    """Nothing is trained again."""
    name = "dasd_30b_a3b"
    first = build_steps(load_recipe(recipe_file(name), local(name, models)))
    first_stage = yaml.safe_load(recipe_file(name).read_text())["stages"][0]
    stages = (
        f"stages=[{json.dumps(first_stage)}, "
        "{name: high_temperature, kind: sampled, temperature: 1.0}, "
        "{name: mixed_policy, kind: mixed_policy, training: {epochs: 1}}]"
    )
    every = build_steps(load_recipe(recipe_file(name), [*local(name, models), stages]))
    assert set(first) < set(every)
    assert all(every[step].key == first[step].key for step in first if step != "report")


@pytest.mark.parametrize("name", [*STUDENTS, "dasd_4b_public"])
def test_a_rehearsal(name: str, models: Path) -> None:
    """Stages and probes have the run's nodes, and what one engine does has one; sequences are as long as the run's."""
    recipe = load_recipe(recipe_file(name), local("dasd_30b_a3b" if "30b" in name else "dasd_4b", models))
    cluster = load_cluster(Path("examples/cluster.yaml"))
    own = recipe_of_rehearsal(recipe, ClusterNodes(recipe, cluster))
    assert own.rehearsal is not None
    assert own.rehearsal.engines == {"teacher": 32, "student": 32, "scorer": 32}
    assert own.rehearsal.longest == {"teacher": 102_400, "student": 102_400, "scorer": 65_536}
    assert min(length for length, _ in own.rehearsal.typical.values()) > 12_000
    jobs = {job.step.name: job.resources for job in jobs_of(own, build_steps(own), cluster)}
    for step, resources in jobs.items():
        if resources.group != "data":
            assert resources.nodes == (8 if step.startswith(("train_", "probe_")) else 1), step
            assert resources.time == 3600


def test_released_responses_save_the_sampling(models: Path) -> None:
    names = ("dasd_4b", "dasd_4b_public")
    recipes = [load_recipe(recipe_file(name), local("dasd_4b", models)) for name in names]
    costs: list[dict[str, float]] = []
    for recipe in recipes:
        plan = Costs(recipe, "h100")
        steps = build_steps(recipe).values()
        costs.append({step.name: plan.of(step, job_resources(recipe, step, 8)).gpu_hours or 0.0 for step in steps})
    sampled, public = costs
    saved = {
        kind: sum(cost for name, cost in sampled.items() if name.startswith(kind)) for kind in ("sample_", "score_")
    }
    scored = sum(cost for name, cost in public.items() if name.startswith("score_"))
    assert sum(public.values()) == pytest.approx(sum(sampled.values()) - saved["sample_"] - saved["score_"] + scored)
    assert scored == pytest.approx(saved["score_"] / 4)
    assert f"{sum(public.values()):,.1f} GPU-hours, {sum(sampled.values()) - sum(public.values()):,.1f} less" in PAGE
    assert (
        f"({saved['sample_']:,.1f}), and a quarter as many candidates are scored ({0.75 * saved['score_']:,.1f})"
        in (PAGE.replace("\n", " "))
    )


def test_costs_are_those_that_the_page_estimates(models: Path) -> None:
    """docs/paper.md, line by line: from the paper's figures and those of data sheets and configs, without the code."""
    recipe = load_recipe(recipe_file("dasd_4b"), local("dasd_4b", models))
    steps: dict[str, Step] = build_steps(recipe)

    def cost(name: str) -> Cost:
        return Costs(recipe, "h100").of(steps[name], job_resources(recipe, steps[name], 8))

    assert round(5.8e9 / 330_000, -2) == 17_600
    assert round(1.45e9 / 105_000, -2) == 13_800
    prompt, spread = 300, 1.8
    flops_a_second, bytes_a_second = 0.4 * 989e12, 2 * 0.4 * 3.35e12  # of a GPU, of an engine
    memory = 2 * 0.9 * 80 * GIB  # of an engine

    # Training, 4 FLOPs a pair of tokens and query column, causal half: forward and backward are three times the forward pass.
    weights = 36 * (2560 * (4096 + 2 * 1024) + 4096 * 2560 + 3 * 2560 * 9728) + 151_936 * 2560

    def forward(length: float) -> float:
        return 2 * weights + 36 * 4 * 4096 * spread * length / 2

    for stage, responses, response, steps_of_stage in (
        ("low_temperature", 105_000, 13_800, 2118),
        ("high_temperature", 330_000, 17_600, 8451),
    ):
        document = prompt + response
        packs = math.ceil(responses * document / 65_536)
        assert math.ceil(6 * packs / 64) == steps_of_stage
        trained = steps_of_stage * 64 * responses * document / packs
        of_stage = cost(f"train_{stage}")
        assert (of_stage.amount, of_stage.tokens_in) == (steps_of_stage, pytest.approx(trained))
        assert of_stage.gpu_hours == pytest.approx(trained * 3 * forward(document) / flops_a_second / 3600)
        # Scoring, of four candidates a question.
        scored = 4 * responses * document
        assert cost(f"score_{stage}").gpu_hours == pytest.approx(scored * forward(document) / flops_a_second / 3600)
        # Decoding by gpt-oss-120b; the prompts' forward pass adds less than a thousandth.
        cache = 2 * 8 * 64 * 2 * 18 * (prompt + spread * response / 2 + 128)
        batch = min(256, (memory - 65.25e9) // cache)
        rate = batch / ((65.25e9 + batch * cache) / bytes_a_second) / 2
        sampled = cost(f"sample_{stage}")
        assert sampled.tokens_out == 4 * responses * response
        assert sampled.gpu_hours == pytest.approx(4 * responses * response / rate / 3600, rel=2e-3)

    # Mixed policy: 15K of 50K answers are truncated at 1.5 times the teacher's length, the others are as long as the teacher's.
    answer = 0.3 * 1.5 * response + 0.7 * response
    assert cost("rollout_mixed_policy").tokens_out == pytest.approx(50_000 * answer)
    cache = 2 * 8 * 128 * 2 * 36 * (prompt + spread * answer / 2)
    batch = (memory - 2 * 4.022e9) // cache
    rate = batch / ((2 * 4.022e9 + batch * cache) / bytes_a_second) / 2
    assert cost("rollout_mixed_policy").gpu_hours == pytest.approx(50_000 * answer / rate / 3600, rel=2e-3)
    mixed = prompt + 0.75 * 1.5 * response + response
    assert cost("continue_mixed_policy").amount == 15_000
    assert cost("filter_mixed_policy").amount == pytest.approx(12_705)
    tokens = 12_705 * mixed + round(2.6 * 12_705) * document
    packs = math.ceil(tokens / 65_536)
    assert cost("pack_mixed_policy").amount == packs == 16_332
    assert cost("train_mixed_policy").amount == math.ceil(packs / 64) == 256

    # 712 problems, 64 answers each.
    answers = [cost(f"answer_mixed_policy_{name}").amount for name in BENCHMARKS]
    assert sum(amount for amount in answers if amount is not None) == 712 * 64

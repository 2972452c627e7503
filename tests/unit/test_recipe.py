"""Recipes: defaults, overrides, and every mistake with its message."""

from __future__ import annotations

from pathlib import Path

import pytest

from dasd_megatron.config.load import load_recipe
from dasd_megatron.pipeline.graph import build_steps
from dasd_megatron.utils.errors import UserError
from tests.conftest import TOY

RECIPE = TOY / "recipe.yaml"


def test_defaults_are_the_papers(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text("name: r\nrun_dir: r\nteacher: {model: t}\nstudent: {model: s}\nprompts: {train: {path: a}}\n")
    recipe = load_recipe(path)
    training = recipe.training
    assert (training.learning_rate, training.min_learning_rate, training.warmup_ratio) == (5e-5, 1e-5, 0.1)
    assert (training.global_batch, training.epochs, recipe.packing.context_length) == (64, 6, 65_536)
    assert [stage.kind for stage in recipe.stages] == ["sampled", "sampled", "mixed_policy"]
    assert [stage.temperature for stage in recipe.stages[:2]] == [0.6, 1.0]
    assert recipe.stages[2].training.applied_to(training).epochs == 1
    assert recipe.selection.threshold == 0.5
    assert recipe.mixed_policy.length_cap == 1.5
    assert not recipe.mixed_policy.mask_prefix


def test_overrides_reach_nested_keys_and_lists() -> None:
    recipe = load_recipe(RECIPE, ["training.learning_rate=5e-3", "stages.0.temperature=0.7", "prompts.train.limit=3"])
    assert recipe.training.learning_rate == 5e-3
    assert recipe.stages[0].temperature == 0.7
    assert recipe.prompts.train.limit == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["training.learning_rat=1"],
            "unknown key 'training.learning_rat'; the nearest valid name is 'training.learning_rate'",
        ),
        (["temprature=1"], "unknown key 'temprature'"),
        (["training.epochs=many"], "training.epochs: Input should be a valid integer"),
        (["training.epochs=yes"], "training.epochs: Input should be a valid integer"),
        (["training={? [a] : b}"], "the value is not valid YAML"),
        (["stages.0.training.global_batch=1"], "data=2 doesn't divide training.global_batch=1"),
        (["evaluation.temperatures=[0.6, 0.6]"], "temperatures=[0.6, 0.6]: give at least one, and none twice"),
        (["evaluation.temperatures=[-1]"], "evaluation.temperatures.0"),
        (["evaluation.benchmarks=[aime24, aime24]"], "benchmarks names aime24 twice"),
        (
            ["evaluation.benchmarks=[aime42]"],
            "evaluation.benchmarks.0: no benchmark is called 'aime42'; the nearest is 'aime25'",
        ),
        (["evaluation.benchmarks=[{name: own, path: a.jsonl}]"], "evaluation.benchmarks.0.grader is missing: say how"),
        (
            ["evaluation.benchmarks=[{name: aime24, template: Solve!}]"],
            "template needs {question} where the problem goes",
        ),
        (
            ["evaluation.benchmarks.0.since=2025-02-01", "evaluation.benchmarks.0.until=2025-01-01"],
            "is after until=2025-01-01",
        ),
        (["prompts.held_out=[gpqa]"], "prompts.held_out: gpqa is not among evaluation.benchmarks (arithmetic)"),
        (["prompts.test={path: a.jsonl}"], "unknown key 'prompts.test'; write evaluation.benchmarks"),
        (["training.learning_rate=.inf"], "training.learning_rate: Input should be a finite number"),
        (["seed=-1"], "seed: Input should be greater than or equal to 0"),
        (['sentence_end="("'], "is no regular expression"),
        (["parallel.tensor=3"], "parallel: tensor=3 doesn't divide the 4 attention heads"),
        (["training.epochs=0"], "training.epochs: Input should be greater than 0"),
        (["parallel.data=3"], "data=3 doesn't divide training.global_batch=2"),
        (["sampling.max_tokens=4096"], "sampling.max_tokens=4096 is above packing.context_length=1024"),
        (
            ["engine.teacher={max_length: 160}"],
            "engine.teacher.max_length=160 (of the teacher's engine) leaves no room for a prompt beside sampling.max_tokens=160",
        ),
        (
            ["engine.student={max_length: 200}", "evaluation.max_tokens=300"],
            "engine.student.max_length=200 (of the student's engine) leaves no room for a prompt beside "
            "evaluation.max_tokens=300",
        ),
        (
            ["engine.teacher={name: server, server: {endpoints: [node7:8000/v1]}}"],
            "an address begins with http:// or https:// and names a host, such as http://node7:8000/v1, not 'node7:8000/v1'",
        ),
        (["engine.server.endpoints=[http://node7:port/v1]"], "an address begins with http:// or https://"),
        (
            ["engine.server.endpoints=[http://node7:8000/v1]"],
            "server.endpoints: no engine asks them; set engine.name=server",
        ),
        (["engine.scorer={name: sglang}"], "engine.scorer.name: no engine is called 'sglang'"),
        (
            ["engine.name=megatron"],
            "engine.name: the engine megatron only scores, and the teacher writes, too; set engine.scorer.name=megatron",
        ),
        (["engine.student={name: megatron}"], "engine.student.name: the engine megatron only scores, and the student"),
        (
            ["engine.scorer={name: megatron, tensor_parallel: 3}"],
            "engine.scorer.tensor_parallel, engine.scorer.megatron: tensor=3 doesn't divide the 4 attention heads",
        ),
        (["training.min_learning_rate=1.0"], "min_learning_rate is above learning_rate"),
        (["training.keep_every=150"], "keep_every=150 is no multiple of save_every=100"),
        (["training.profile=[5, 4]"], "profile=[5, 4] ends before it begins"),
        (["training.profile=[0, 4]"], "training.profile.0: Input should be greater than 0, not 0"),
        (["packing.held_out=1"], "packing.held_out: Input should be less than 1, not 1"),
        (["prompts.train.dataset=x"], "give exactly one of path and dataset"),
        (["stages.0.temperature=null"], "stages.0.temperature: Input should be a valid number, not null"),
        (["stages.0={name: a, kind: mixed_policy}"], "stages.0 (a): the first stage needs kind: sampled"),
        (["stages.0={name: a, temperature: 1}"], "stages.0.kind: must be sampled or mixed_policy, not left out"),
        (["stages.2.kind=onpolicy"], "stages.2.kind: must be sampled or mixed_policy, not onpolicy"),
        (
            ["stages.2.prompts=5"],
            "unknown key 'stages.2.prompts': one of kind mixed_policy has no prompts, one of kind sampled has",
        ),
        (["stages.1.training.min_learning_rate=1.0"], "stages.1.training: min_learning_rate is above learning_rate"),
        (["stages.1.name=low_temperature"], "stages need distinct names"),
        (["stages.2.training.lr=1"], "unknown key 'stages.2.training.lr'"),
        (["engine.name=sglang"], "engine.name: no engine is called 'sglang'; there are: vllm, server, transformers"),
        (
            ["selection.score=share"],
            "selection.score: no selection score is called 'share'; the nearest is 'share_above'",
        ),
        (["prompts.train.grader={math: maths}"], "prompts.train.grader.math: no grader is called 'maths'"),
        (
            ["evaluation.benchmarks.0.grader=maths"],
            "evaluation.benchmarks.0.grader: no grader is called 'maths'; the nearest is 'math'; there are: exact, number, math",
        ),
        (["filters.additional={short: {}}"], "filters.additional: no filter is called 'short'"),
        (["plugins=[no_such_module]"], "plugins: 'no_such_module' can't be imported"),
        (["seed"], "override 'seed': write key=value"),
        (["stages.9.name=x"], "override 'stages.9.name=x': stages.9 is not in the recipe"),
    ],
)
def test_mistakes_name_file_key_and_remedy(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as caught:
        build_steps(load_recipe(RECIPE, overrides))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "not valid YAML"),
        ("- a", "a recipe is a mapping"),
        ("name: a\nname: b\n", "key 'name' is given twice"),
        ("name: toy\n", "'run_dir' is missing"),
    ],
)
def test_unreadable_recipes(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"recipe\.yaml") as caught:
        load_recipe(path)
    assert message in str(caught.value)


def test_absent_recipe(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no\.yaml: no such file"):
        load_recipe(tmp_path / "no.yaml")


@pytest.fixture(autouse=True)
def _in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(TOY.parent.parent)


def keys(*overrides: str) -> dict[str, str]:
    return {name: step.key for name, step in build_steps(load_recipe(RECIPE, overrides)).items()}


def test_a_change_renames_what_depends_on_it_and_nothing_else() -> None:
    before, after = keys(), keys("stages.1.temperature=0.9")
    changed = {name for name in before if before[name] != after[name]}
    assert "sample_high_temperature" in changed
    assert "train_mixed_policy" in changed
    assert "report" in changed
    unchanged = (
        "sample_low_temperature",
        "train_low_temperature",
        "answer_low_temperature_arithmetic",
        "reference_arithmetic",
        "import_student",
    )
    assert not changed & set(unchanged)


@pytest.mark.parametrize(
    "override",
    [
        "parallel.data=1",
        "launch.replicas=4",
        "training.save_every=7",
        "training.keep_every=200",
        "training.async_save=false",
        "run_dir=elsewhere",
        "engine.max_batch=8",
        "engine.megatron={context: 2, pack_tokens: 65536}",
    ],
)
def test_where_and_how_it_runs_renames_nothing(override: str) -> None:
    assert keys() == keys(override)


def test_models_are_known_by_content_not_place(tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "teacher"
    shutil.copytree(TOY / "teacher", copy)
    assert keys() == keys(f"teacher.model={copy}")
    (copy / "chat_template.jinja").write_text("{{ messages }}")
    assert keys()["sample_low_temperature"] != keys(f"teacher.model={copy}")["sample_low_temperature"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("teacher.model=nowhere", "teacher.model: nowhere: no such model folder"),
        ("student.model=examples", "student.model: examples: no config.json"),
        ("evaluation.benchmarks.0.path=none.jsonl", "evaluation.benchmarks.0.path: none.jsonl: no such file"),
    ],
)
def test_absent_inputs(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        build_steps(load_recipe(RECIPE, [override]))
    assert message in str(caught.value)


def test_every_step_follows_its_inputs() -> None:
    steps = build_steps(load_recipe(RECIPE))
    seen: set[str] = set()
    for name, step in steps.items():
        assert {source.name for source in step.inputs.values() if hasattr(source, "kind")} <= seen
        seen.add(name)


def test_merge_keys_work(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        RECIPE.read_text()
        .replace("stages:", "stages: &stages")
        .replace("teacher:", "teacher: &t")
        .replace("student:\n  model:", "student:\n  <<: *t\n  model:")
    )
    assert load_recipe(path).student.model != load_recipe(path).teacher.model


def test_student_without_chat_template_is_refused_at_once(tmp_path: Path) -> None:
    import shutil

    shutil.copytree(TOY / "student", tmp_path / "student")
    (tmp_path / "student" / "chat_template.jinja").unlink()
    with pytest.raises(UserError, match="no chat template"):
        build_steps(load_recipe(RECIPE, [f"student.model={tmp_path / 'student'}"]))

"""The doors: a filter, score, engine, grader, model family and step kind from outside the package, registered and run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.config.load import load_recipe
from dasd_megatron.pipeline.graph import build_steps
from dasd_megatron.runtime.run_step import run_step
from dasd_megatron.steps.registry import STEP_KINDS
from dasd_megatron.steps.step import Step
from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.registry import Registry
from tests.conftest import ROOT, TOY
from tests.helpers.small_run import SMALL

PLUGIN = '''
from collections import Counter

import pyarrow as pa

from dasd_megatron.config.base import Config, Positive
from dasd_megatron.curation.filters.filter import Filter
from dasd_megatron.curation.filters.registry import FILTERS
from dasd_megatron.curation.scores import SCORES
from dasd_megatron.grading.registry import GRADERS
from dasd_megatron.grading.verdict import judged
from dasd_megatron.sampling.engines.registry import ENGINES
from dasd_megatron.sampling.engines.transformers_engine import TransformersEngine
from dasd_megatron.steps.registry import STEP_KINDS
from dasd_megatron.steps.step import StepConfig, StepContext, StepKind


@FILTERS.register("answer_too_long")
class AnswerTooLong(Filter):
    class Options(Config):
        max_chars: Positive

    options_type = Options

    def reason(self, response):
        return "answer_too_long" if len(response.text.rpartition("</think>")[2]) > self.options.max_chars else None


@SCORES.register("least_difference")
def least_difference(candidates, threshold):
    return [float(candidate.sentences.difference.min()) for candidate in candidates]


@GRADERS.register("last_digit")
def last_digit(answer, reference):
    return judged(answer[-1:] == reference[-1:], answer[-1:])


@ENGINES.register("counted")
class CountedEngine(TransformersEngine):
    """The reference engine under another name."""


class CountConfig(StepConfig):
    column: str


@STEP_KINDS.register("count")
class CountStep(StepKind[CountConfig]):
    name = "count"

    def run(self, context: StepContext[CountConfig]):
        values = context.artifact("responses").read("responses")[context.config.column].to_pylist()
        rows = [{"value": str(value), "count": count} for value, count in Counter(values).most_common()]
        context.output.write_shard("counts", 0, pa.Table.from_pylist(rows))
        return {"counts": {"values": len(rows)}}
'''


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the module `house_rules`, from outside the package."""
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "house_rules.py").write_text(PLUGIN)
    return folder


@pytest.fixture(scope="module")
def run(plugin: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Step]:
    """The first stage's data, made by the command with everything of the plugin's; steps that are done."""
    folder = tmp_path_factory.mktemp("run")
    overrides = [
        *SMALL,
        "plugins=[house_rules]",
        "engine.name=counted",
        "filters.additional={answer_too_long: {max_chars: 1}}",
        "selection.score=least_difference",
        "evaluation.benchmarks.0.grader=last_digit",
        "launch.replicas=1",
        f"run_dir={folder}",
    ]
    only = [
        "benchmark_arithmetic",
        "prompts_train",
        *(f"{kind}_low_temperature" for kind in ("sample", "filter", "score", "select")),
    ]
    only += ["reference_arithmetic", "answer_student_arithmetic", "grade_student_arithmetic"]
    command = [sys.executable, "-m", "dasd_megatron.cli.main", "launch", str(TOY / "recipe.yaml"), *overrides]
    done = subprocess.run(
        [*command, *(argument for step in only for argument in ("--only", step))],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{plugin}:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    sys.path.insert(0, str(plugin))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(ROOT)
        return build_steps(load_recipe(TOY / "recipe.yaml", overrides))


def test_engine(run: dict[str, Step]) -> None:
    assert Artifact(run["sample_low_temperature"].folder).manifest["config"]["engine"]["name"] == "counted"
    assert Artifact(run["sample_low_temperature"].folder).manifest["counts"]["responses"] == 96


def test_filter(run: dict[str, Step]) -> None:
    filtered = Artifact(run["filter_low_temperature"].folder)
    assert all(len(row["text"].rpartition("</think>")[2]) <= 1 for row in filtered.rows("responses"))
    reasons = {row["reason"] for row in filtered.rows("dropped")}
    assert reasons == set(filtered.manifest["dropped"])


@pytest.mark.parametrize(
    ("additional", "message"),
    [
        (
            "{answer_too_long: {max_char: 1}}",
            "filters.additional.answer_too_long: unknown key 'max_char'; the nearest valid name is 'max_chars'",
        ),
        ("{answer_too_long: {}}", "filters.additional.answer_too_long: 'max_chars' is missing"),
        ("{answer_too_long: {max_chars: x}}", "filters.additional.answer_too_long: max_chars: .*, not 'x'"),
        ("{answer_too_lon: {}}", "filters.additional: no filter is called 'answer_too_lon'; the nearest is"),
        ("{too_long: {}}", "filters.additional.too_long: it runs always, and once"),
    ],
)
def test_options_of_filters_are_checked_before_anything_runs(
    run: dict[str, Step], monkeypatch: pytest.MonkeyPatch, additional: str, message: str
) -> None:
    monkeypatch.chdir(ROOT)
    recipe = load_recipe(TOY / "recipe.yaml", ["plugins=[house_rules]", f"filters.additional={additional}"])
    with pytest.raises(UserError, match=message):
        build_steps(recipe)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            None,
            r"recipe.yaml: plugins: 'odd_\w+' can't be imported: No module named 'odd_\w+'; install it, or put its folder on",
        ),
        ("import not_there_at_all", r"ModuleNotFoundError: No module named 'not_there_at_all' \(.*odd_\w+\.py:1\)"),
        ("1 / 0", r"'odd_\w+' can't be imported: ZeroDivisionError: division by zero \(.*odd_\w+\.py:1\)"),
        ("def f(:", r"'odd_\w+' can't be imported: SyntaxError: .*odd_\w+\.py, line 1"),
        (
            "from dasd_megatron.grading.registry import GRADERS\nGRADERS.register('exact')(print)",
            r"ValueError: grader 'exact' is registered already \(.*odd_\w+\.py:2\)",
        ),
    ],
    ids=["absent", "lacks a package", "raises", "syntax", "taken name"],
)
def test_plugins_that_cannot_be_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, message: str
) -> None:
    name = f"odd_{abs(hash(message))}"
    monkeypatch.syspath_prepend(str(tmp_path))
    if content is not None:
        (tmp_path / f"{name}.py").write_text(content)
    with pytest.raises(UserError, match=message):
        load_recipe(TOY / "recipe.yaml", [f"plugins=[{name}]"])


def test_score(run: dict[str, Step]) -> None:
    """The candidates' table has it, and the chosen ones are each prompt's best by it."""
    selected = Artifact(run["select_low_temperature"].folder)
    rows = list(selected.rows("candidates"))
    chosen = {(row["uuid"], row["sample_index"]) for row in selected.rows("responses", ["uuid", "sample_index"])}
    assert chosen
    best: dict[str, float] = {}
    for row in rows:
        best[row["uuid"]] = max(best.get(row["uuid"], -9.0), row["least_difference"])
    assert all(
        row["least_difference"] == best[row["uuid"]] for row in rows if (row["uuid"], row["sample_index"]) in chosen
    )


def test_grader(run: dict[str, Step]) -> None:
    graded = Artifact(run["grade_student_arithmetic"].folder)
    references = {row["uuid"]: row["answer"] for row in Artifact(run["benchmark_arithmetic"].folder).rows("prompts")}
    rows = list(graded.rows("answers"))
    assert rows
    for row in rows:
        if row["extracted"] is not None:
            assert row["correct"] == (row["extracted"] == references[row["uuid"]][-1:])
    assert graded.manifest["config"]["grader"] == "last_digit"


def test_step_kind(run: dict[str, Step], tmp_path: Path) -> None:
    kind = STEP_KINDS.get("count")
    config = sys.modules["house_rules"].CountConfig(column="finish_reason")
    step = Step("count_ends", kind(), config, {"responses": run["sample_low_temperature"]}, tmp_path)
    run_step(step, [])
    assert step.done
    assert sum(row["count"] for row in Artifact(step.folder).rows("counts")) == 96
    other = Step("count_ends", kind(), config.model_copy(update={"column": "domain"}), step.inputs, tmp_path)
    assert other.key != step.key


def test_model_family(tmp_path: Path) -> None:
    """Qwen3's tensors under another architecture's name: converted there and back."""
    from dataclasses import replace

    from conversion.convert import export_hf, import_hf
    from dasd_megatron.models.families.qwen3 import QWEN3
    from dasd_megatron.models.families.registry import FAMILIES

    FAMILIES.register("HouseForCausalLM")(replace(QWEN3, architecture="HouseForCausalLM"))
    folder = tmp_path / "house"
    shutil.copytree(TOY / "student", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["HouseForCausalLM"]}))
    import_hf(folder, tmp_path / "megatron")
    export_hf(tmp_path / "megatron", tmp_path / "back")
    from safetensors.torch import load_file

    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "back"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_name_that_is_taken() -> None:
    registry: Registry[object] = Registry("grader", {"exact": "a:b"})
    with pytest.raises(ValueError, match="grader 'exact' is registered already"):
        registry.register("exact")(object())

"""Study files: the runs that they imply, what these have in common, and mistakes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from dasd_megatron.cli.main import main
from dasd_megatron.config.load import load_recipe
from dasd_megatron.pipeline.graph import build_steps
from dasd_megatron.studies.machine_shares import Machine
from dasd_megatron.studies.study import load_study, steps_of
from dasd_megatron.utils.errors import UserError
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def _in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def written(folder: Path, **changes: Any) -> Path:
    content = {
        "name": "selection",
        "study_dir": str(folder / "study"),
        "recipe": "examples/toy/recipe.yaml",
        "seeds": [1, 2],
        "arms": {"random": {"selection.method": "random"}},
        **changes,
    }
    content["arms"].setdefault("das", {})
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def test_arms_share_the_steps_that_they_have_in_common(tmp_path: Path) -> None:
    study = load_study(written(tmp_path))
    assert [(run.arm, run.seed) for run in study.runs] == [("random", 1), ("das", 1), ("random", 2), ("das", 2)]
    random, das = study.runs[:2]
    for name in ("prompts_train", "sample_low_temperature", "score_high_temperature", "answer_teacher_arithmetic"):
        assert random.steps[name].folder == das.steps[name].folder, name
    for name in ("select_low_temperature", "train_low_temperature", "rollout_mixed_policy", "report"):
        assert random.steps[name].folder != das.steps[name].folder, name
    steps = steps_of(study)
    assert len(steps) < sum(len(run.steps) for run in study.runs)
    seen: set[str] = set()
    for name, (step, _) in steps.items():
        assert all(source.folder.name in seen for source in step.inputs.values() if hasattr(source, "folder"))
        seen.add(name)


def test_a_run_of_a_study_is_a_run_like_any_other(tmp_path: Path) -> None:
    run = load_study(written(tmp_path, settings={"training.epochs": 3})).of_arm("random")[1]
    run.write_recipe()
    assert run.recipe.run_dir == tmp_path / "study" / "random" / "seed-2"
    assert run.file.parent == tmp_path / "study" / "recipes"
    other = load_study(written(tmp_path, settings={"training.epochs": 4})).of_arm("random")[1]
    assert other.file != run.file  # jobs that are queued keep theirs
    recipe = load_recipe(run.file)
    assert (recipe.seed, recipe.training.epochs, recipe.selection.method) == (2, 3, "random")
    assert {n: s.folder for n, s in build_steps(recipe).items()} == {n: s.folder for n, s in run.steps.items()}


def test_settings_of_any_type(tmp_path: Path) -> None:
    path = written(tmp_path)
    content = yaml.safe_load(path.read_text())
    content["arms"]["das"] = {
        "stages": [{"name": "only", "kind": "sampled", "temperature": 0.6, "training": {"epochs": 2}}],
        "sentence_end": "[;:!{}'\n]+ # none",
        "evaluation.benchmarks.0.since": "2025-01-02",
        "selection.total": None,
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    with pytest.raises(UserError, match=r"arms\.das: its step benchmark_arithmetic isn't that of arms\.random"):
        load_study(path)
    del content["arms"]["das"]["evaluation.benchmarks.0.since"]
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    recipe = load_study(path).of_arm("das")[0].recipe
    assert recipe.sentence_end == "[;:!{}'\n]+ # none"
    assert [stage.name for stage in recipe.stages] == ["only"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, "seeds: "),
        ({"seeds": [1, 1]}, "seeds=[1, 1]: give none twice"),
        ({"arms": {"student": {}}}, "arms.student: that's the name of a model"),
        ({"arms": {"a": {"seed": 3}}}, "arms.a: seed is given by the study itself"),
        ({"settings": {"run_dir": "x"}}, "settings: run_dir is given by the study itself"),
        ({"comparisons": [{"name": "x", "arm": "das", "against": "dsa"}]}, "comparisons.0.against: dsa is not among"),
        (
            {"comparisons": [{"name": "x", "arm": "student", "against": "das"}]},
            "comparisons.0.arm: student is not among",
        ),
        ({"arms": {"a": {"training.epoch": 3}}}, "arms.a: examples/toy/recipe.yaml: unknown key 'training.epoch'"),
        ({"arms": {"a": {"evaluation.benchmarks": []}}}, "has no evaluation.benchmarks"),
        ({"recipe": "absent.yaml"}, "absent.yaml: no such file"),
        (
            {"arms": {"a": {"evaluation.samples": 2}}},
            "arms.das: its step answer_student_arithmetic isn't that of arms.a",
        ),
        (
            {"arms": {"a": {"evaluation.benchmarks.0.grader": "exact"}}},
            "its step grade_student_arithmetic isn't that of",
        ),
        ({"arms": {"a": {"evaluation.teacher": False}}}, "its step answer_student_arithmetic isn't that of arms.a"),
        ({"arms": {"a": {"parallel.data": 1}}}, "arms.das and arms.a make the same model"),
        ({"arm": {}}, "unknown key 'arm'"),
    ],
)
def test_mistakes(tmp_path: Path, changes: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", str(written(tmp_path, **changes))]) == 2
    errors = capsys.readouterr().err
    assert errors.startswith(f"error: {tmp_path / 'study.yaml'}: ")
    assert message in errors
    assert not (tmp_path / "study").exists()


def test_a_dry_run_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path)
    assert main(["study", str(path), "--dry-run"]) == 0
    out = capsys.readouterr().out
    count = len(steps_of(load_study(path)))
    assert f"2 arms with 2 seeds: {count} different steps, 0 of them done" in out
    assert "known once a step of each kind is done" in out
    assert not (tmp_path / "study").exists()


def test_steps_side_by_side_share_a_machine(tmp_path: Path) -> None:
    steps = load_study(written(tmp_path, settings={"engine.tensor_parallel": 2})).runs[0].steps
    train, sample, grade = (
        steps[name] for name in ("train_low_temperature", "sample_low_temperature", "grade_student_arithmetic")
    )
    cpus = Machine(frozenset(range(4)), ())
    assert [cpus.needs(step) for step in (train, sample, grade)] == [(2, 0), (2, 0), (1, 0)]
    first, second = cpus.take(train), cpus.take(sample)
    assert first is not None
    assert second is not None
    assert not first.cores & second.cores
    assert cpus.take(grade) is None
    cpus.give_back(first)
    assert cpus.take(grade) is not None

    gpus = Machine(frozenset(range(10)), ("0", "1", "2", "3"))
    assert gpus.needs(train) == (4, 2)
    assert gpus.needs(sample) == (8, 4)  # launch.replicas=2 engines of two
    assert gpus.needs(grade) == (1, 0)
    both = [gpus.take(train), gpus.take(train)]
    assert [share.gpus for share in both if share] == [("0", "1"), ("2", "3")]
    assert gpus.take(sample) is None
    assert gpus.take(grade) is not None

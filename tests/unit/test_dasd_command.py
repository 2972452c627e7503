"""The command `dasd`: its subcommands, and what it says to mistakes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dasd_megatron import __version__
from dasd_megatron.cli.main import COMMANDS, main
from tests.conftest import ROOT

RECIPE = "examples/toy/recipe.yaml"


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def exit_code(*arguments: str) -> int:
    """Of `dasd` with these arguments, whether it returns it or argparse raises it."""
    try:
        return main(list(arguments))
    except SystemExit as error:
        return int(error.code or 0)


def test_help_lists_the_subcommands(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--help") == 0
    shown = capsys.readouterr().out
    assert list(COMMANDS) == [
        "launch",
        "train",
        "convert",
        "generate",
        "score",
        "curate",
        "evaluate",
        "grade",
        "release",
        "study",
        "settings",
    ]
    assert all(f"  {name}" in shown for name in COMMANDS)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--version") == 0
    assert capsys.readouterr().out.split()[-1] == __version__


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lunch"], "launch"),
        (
            ["settings", "training.learning_rat"],
            "no setting or section is called 'training.learning_rat'; the nearest is",
        ),
        (["settings", "training", "--schema"], "--markdown and --schema print all settings"),
        (["launch", RECIPE, "--dry-run", "--only", "filter_low"], "no step 'filter_low'; the nearest is"),
        (["curate", RECIPE, "--step", "train_low_temperature"], "--step train_low_temperature: not one of filter_low_"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(*arguments) == 2
    assert message in capsys.readouterr().err


def test_dry_run_of_single_steps(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    steps = ["prompts_train", "train_low_temperature"]
    only = [argument for step in steps for argument in ("--only", step)]
    assert exit_code("launch", RECIPE, "--dry-run", *only, f"run_dir={tmp_path}") == 0
    shown = capsys.readouterr().out
    assert "0 of 2 steps are done" in shown
    assert "<- examples/toy/train.jsonl, benchmark_arithmetic" in shown
    assert "None" not in shown


def test_settings_of_a_section(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("settings", "selection") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert lines
    assert all(line.startswith("selection.") for line in lines)


@pytest.mark.parametrize("options", [[], ["--cluster"]])
def test_schema(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("settings", "--schema", *options) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["additionalProperties"] is False
    described = [field for field in schema["properties"].values() if "description" in field or "$ref" in field]
    assert len(described) > len(schema["properties"]) // 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tolerance", "-5"], "--tolerance is accuracy that may be lost: at least 0"),
        (["run_dir=elsewhere"], "--output says where answers go; run_dir can't be set beside it"),
    ],
)
def test_evaluate_refuses(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("evaluate", "models/m", "--benchmark", "aime24", *arguments) == 2
    assert message in capsys.readouterr().err

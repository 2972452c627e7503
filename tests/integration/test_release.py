"""A finished run's release: it loads where people load such things, and says what the run was and nothing of this machine."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from datasets import load_dataset
from huggingface_hub import DatasetCard, ModelCard
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.config.load import load_recipe
from dasd_megatron.config.sampling import EngineConfig
from dasd_megatron.pipeline.graph import build_steps
from dasd_megatron.release.cards import Names, model_card
from dasd_megatron.release.finished_run import FinishedRun
from dasd_megatron.sampling.engines.engine import Request, generate_all
from dasd_megatron.sampling.engines.registry import load_engine
from dasd_megatron.tokenization.tokenizer import ChatTokenizer
from tests.conftest import ROOT
from tests.helpers.model_hub import ModelHub
from tests.helpers.servers import free_port
from tests.helpers.small_run import RECIPE, SMALL, artifacts, finish

pytestmark = pytest.mark.full
SECRET = "hf_thisMustBeNowhere"
NAMES = ("--base-model", "my-lab/student", "--teacher", "my-lab/teacher", "--license", "apache-2.0")
STAGES = ("low_temperature", "high_temperature", "mixed_policy")


def release(*arguments: object, code: int = 0, **environment: str) -> str:
    command = [sys.executable, "-m", "dasd_megatron.cli.main", "release", *map(str, arguments)]
    variables = {**os.environ, "HF_TOKEN": SECRET, **environment}
    done = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert SECRET not in done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "datasets"))


@pytest.fixture(scope="module")
def released(calm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("release") / "out"
    release(calm, "--output", folder, *NAMES)
    return folder


def test_the_model_loads_in_transformers_and_vllm(calm: Path, released: Path) -> None:
    final = calm / "final"
    model = AutoModelForCausalLM.from_pretrained(released / "model", dtype=torch.float32)
    weights = load_file(released / "model" / "model.safetensors")
    for name, tensor in load_file(final / "model.safetensors").items():
        assert torch.equal(tensor, weights[name]), name
    tokenizer = AutoTokenizer.from_pretrained(released / "model")
    chat = [{"role": "user", "content": "2*3+4*5?"}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    said = model.generate(**prompt, do_sample=False, max_new_tokens=24)[0, prompt["input_ids"].shape[1] :].tolist()
    own = ChatTokenizer(released / "model")
    request = Request(own.prompt_ids("2*3+4*5?"), 0, 24, 0.0, 1.0, own.stop_ids)
    engine = load_engine(released / "model", EngineConfig(name="vllm", dtype="float32", max_batch=2))
    (sample,) = generate_all(engine, [request])
    assert sample.token_ids.tolist() == said


def test_the_data_is_what_was_trained_on(calm: Path, released: Path, tmp_path: Path) -> None:
    steps = artifacts(calm)
    for name in STAGES:
        step = f"select_{name}" if f"select_{name}" in steps else f"filter_{name}"
        trained = list(Artifact(steps[step].folder).rows("responses", None))
        # `datasets` keeps what it reads by the folder's name: that of another release, of an earlier run of this test.
        texts, numbers = (
            load_dataset(str(released / "data"), config, split="train", cache_dir=str(tmp_path / "cache"))
            for config in (name, f"{name}_logprobs")
        )
        assert texts.column_names == ["uuid", "input", "output", "domain", "answer", "meta"]
        assert numbers.column_names == ["sample_uuid", "token_ids", "logprobs"]
        assert len(set(texts["uuid"])) == len(trained)
        for row, text, number in zip(trained, texts, numbers, strict=True):
            assert text["uuid"] == number["sample_uuid"]
            assert [text[key] for key in ("input", "output", "answer")] == [
                row[key] for key in ("input", "text", "answer")
            ]
            assert text["meta"]["prompt_uuid"] == row["uuid"]
            assert text["meta"]["student_bytes"] == (row["prefix_bytes"] if name == "mixed_policy" else 0)
            assert number["token_ids"] == row["token_ids"]
            assert number["logprobs"] == pytest.approx(row["logprobs"], abs=0)


def test_cards(calm: Path, released: Path) -> None:
    model, data = ModelCard.load(released / "model" / "README.md"), DatasetCard.load(released / "data" / "README.md")
    summary = json.loads((calm / "summary.json").read_text())
    accuracy = summary["benchmarks"]["arithmetic"]["measures"]["mixed_policy"]["1"]["accuracy"]
    assert model.data.base_model == "my-lab/student"
    assert model.data.license == data.data.license == "apache-2.0"
    (result,) = model.data.eval_results
    assert (result.dataset_name, result.metric_name) == ("arithmetic", "avg@1")
    assert result.metric_value == pytest.approx(100 * accuracy["mean"], abs=0.01)
    mean, low, high = (f"{100 * accuracy[key]:.1f}" for key in ("mean", "low", "high"))
    assert f"| mixed policy | T=1, avg@1 | {mean} [{low}, {high}] |" in model.text
    assert "learning_rate: 0.002" in model.text
    assert "my-lab/teacher" in model.text
    assert [config["config_name"] for config in data.data.configs][:2] == [
        "low_temperature",
        "low_temperature_logprobs",
    ]
    manifest = Artifact(artifacts(calm)["report"].folder).manifest
    assert manifest["source"] is None or manifest["source"]["commit"][:12] in model.text


def test_checksums(released: Path) -> None:
    for part in ("model", "data"):
        folder = released / part
        subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=folder, check=True)
        listed = {line.split("  ")[1] for line in (folder / "SHA256SUMS").read_text().splitlines()}
        there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        assert there - listed == {"SHA256SUMS", "README.md"}


def test_nothing_of_this_machine(calm: Path, released: Path) -> None:
    private = [SECRET, str(calm), str(ROOT), str(released), f"{Path.home()}/"]
    for path in (path for path in released.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            content += json.dumps(table.to_pylist()).encode() + repr(table.schema.metadata).encode()
        elif path.suffix != ".safetensors":  # its numbers may spell any short name
            assert not re.search(rf"\b{re.escape(platform.node())}\b", content.decode()), path
        for text in private:
            assert text.encode() not in content, (path, text)


def test_the_card_says_the_system_prompt_of_training(calm: Path) -> None:
    """The exported template has it (test_tokenization); servers and their users don't know of it."""
    prompt = 'You are a "helpful" assistant.'
    card = model_card(FinishedRun(calm), Names("my-lab/student", "my-lab/teacher", None, None), prompt, [])
    assert json.dumps(prompt) in card
    assert "Not stated." in card
    assert ModelCard(card).data.license is None


def test_the_same_release_is_made_once(calm: Path, released: Path, tmp_path: Path) -> None:
    """One that was interrupted is made again, and the same."""
    assert "is there already" in release(calm, "--output", released, *NAMES)
    folder = tmp_path / "out"
    shutil.copytree(released, folder)
    (folder / "release.json").unlink()
    (folder / ".model.tmp").mkdir()
    (folder / ".model.tmp" / "model.safetensors").write_text("half")
    shutil.rmtree(folder / "data")
    assert "is there already" not in release(calm, "--output", folder, *NAMES)
    card = folder / "model" / "README.md"
    card.write_text(card.read_text() + "\nOur notes.\n")  # stays
    assert "is there already" in release(calm, "--output", folder, *NAMES)
    assert card.read_text().endswith("Our notes.\n")
    (folder / "model" / "model.safetensors").unlink()
    assert "is there already" not in release(calm, "--output", folder, *NAMES)
    sums = [(place / part / "SHA256SUMS").read_text() for place in (folder, released) for part in ("model", "data")]
    assert sums[:2] == sums[2:]
    assert sorted(path.name for path in folder.iterdir()) == ["data", "model", "release.json"]


def test_the_data_can_be_learned_from_again(calm: Path, released: Path, tmp_path: Path) -> None:
    """Read back as `stages.*.responses`, the selection takes every response, with the scores that it had."""
    responses = {
        "path": str(released / "data" / "data" / "low_temperature" / "train-00000.parquet"),
        "logprobs": {"path": str(released / "data" / "logprobs" / "low_temperature" / "train-00000.parquet")},
    }
    stages = [{"name": "low_temperature", "kind": "sampled", "temperature": 0.6, "responses": responses}]
    overrides = [*SMALL, f"run_dir={tmp_path / 'run'}", f"stages={json.dumps(stages)}", "evaluation.teacher=false"]
    os.chdir(ROOT)
    steps = build_steps(load_recipe(RECIPE, overrides))
    chain = ["prompts_low_temperature", "responses_low_temperature", "filter_low_temperature"]
    chain += ["score_low_temperature", "select_low_temperature"]
    needed = [name for name in steps if name in chain or name.startswith("benchmark_")]
    code, out, errors = finish(str(RECIPE), *overrides, *(f"--only={name}" for name in needed))
    assert code == 0, out + errors
    columns = ["text", "student_logprobs"]
    ours = sorted(Artifact(steps[chain[-1]].folder).rows("responses", columns), key=lambda row: row["text"])
    first = sorted(Artifact(artifacts(calm)[chain[-1]].folder).rows("responses", columns), key=lambda row: row["text"])
    assert [row["text"] for row in ours] == [row["text"] for row in first]
    for row, other in zip(ours, first, strict=True):
        assert row["student_logprobs"] == pytest.approx(other["student_logprobs"], abs=1e-4)


@pytest.fixture(scope="module")
def hub() -> Iterator[ModelHub]:
    with ModelHub(SECRET) as hub:
        yield hub


def test_a_dry_run_lists_and_sends_nothing(calm: Path, released: Path, hub: ModelHub) -> None:
    said = release(
        calm, "--output", released, *NAMES, "--push", "my-lab/toy", "--dry-run", HF_ENDPOINT=hub.url, HF_TOKEN=""
    )
    assert re.search(r"\d+  \S+/model/model.safetensors", said)
    assert re.search(r"\d+  \S+/data/logprobs/mixed_policy/train-00000.parquet", said)
    assert hub.requests == 0


def test_push(calm: Path, tmp_path: Path, hub: ModelHub) -> None:
    """What arrives is what was made; the token arrives in its header alone."""
    online = {
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "MY_TOKEN": SECRET,
        "HF_TOKEN": "",
    }
    arguments = (calm, "--output", tmp_path / "out", *NAMES, "--push", "my-lab/toy", "--private")
    said = release(*arguments, "--token-env", "MY_TOKEN", **online)
    assert "/my-lab/toy" in said
    assert hub.created == {("model", "my-lab/toy", True), ("dataset", "my-lab/toy", True)}
    for kind, part in (("model", "model"), ("dataset", "data")):
        folder = tmp_path / "out" / part
        sent = hub.files[kind, "my-lab/toy"]
        there = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        assert sent == there
    card = ModelCard.load(tmp_path / "out" / "model" / "README.md")
    assert card.data.datasets == ["my-lab/toy"]
    refused = release(*arguments, **{**online, "HF_TOKEN": "hf_another"}, code=2)
    assert "my-lab/toy: the hub refused (401: " in refused
    assert "hf_another" not in refused


def test_refusals(calm: Path, tmp_path: Path, toy_evaluation: Path) -> None:
    def error(*arguments: object, **environment: str) -> str:
        said = release(*arguments, code=2, **environment)
        assert said.count("error: ") == 1
        return said

    assert "no such run folder" in error(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    assert "no finished run (no report.html)" in error(tmp_path / "empty")
    assert "trained no model" in error(toy_evaluation)
    assert "give OWNER/NAME" in error(calm, "--output", tmp_path / "a", "--push", "noowner")
    assert "environment variable HF_TOKEN" in error(calm, "--output", tmp_path / "a", "--push", "a/b", HF_TOKEN="")
    closed = {"HF_ENDPOINT": f"http://127.0.0.1:{free_port()}", "HF_HUB_OFFLINE": "0"}
    assert "can't reach the hub (ConnectError); run" in error(
        calm, "--output", tmp_path / "a", "--push", "a/b", **closed
    )
    (tmp_path / "c" / "data").mkdir(parents=True)
    (tmp_path / "c" / "data" / "mine.txt").write_text("mine")
    assert "is there, and is no release; move it" in error(calm, "--output", tmp_path / "c", *NAMES)
    assert (tmp_path / "c" / "data" / "mine.txt").is_file()
    assert "--license: 'a\\n---'" in error(calm, "--output", tmp_path / "a", "--license", "a\n---")
    moved = tmp_path / "moved"
    shutil.copytree(calm, moved, symlinks=True)
    release(moved, *NAMES)  # wherever it is now
    (file,) = (moved / "artifacts").glob("export_mixed_policy-*/model.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert f"{file}: damaged" in error(moved, "--output", tmp_path / "b", *NAMES)
    assert not (tmp_path / "b" / "model").exists()
    (moved / "report.html").write_text("changed")
    assert "isn't that of a run whose steps are here" in error(moved)


@pytest.fixture(scope="module")
def toy_evaluation(calm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that measured and trained nothing."""
    folder = tmp_path_factory.mktemp("evaluation") / "run"
    settings = ["evaluation.benchmarks.0.grader=number", "student.response_format=think"]
    problems = ["--benchmark", "mine=examples/toy/test.jsonl", "--limit", "2", "--samples", "1", "--max-tokens", "32"]
    command = [sys.executable, "-m", "dasd_megatron.cli.main", "evaluate", str(calm / "final"), *settings, *problems]
    subprocess.run([*command, "--engine", "transformers", "--output", str(folder)], cwd=ROOT, check=True)
    return folder

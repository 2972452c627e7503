"""A real language model, SmolLM2-135M-Instruct: imported, verified, exported; the export says what the original says."""

from __future__ import annotations

import json
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
from tests.conftest import ROOT
from tests.helpers.smollm2 import smollm2_folder

QUESTIONS = ("What is the capital of France?", "Write a haiku about the sea.", "Name three prime numbers.")
TOKENS = 32

pytestmark = [pytest.mark.network, pytest.mark.full]


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


def test_a_real_model(tmp_path: Path) -> None:
    smollm2 = smollm2_folder()
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

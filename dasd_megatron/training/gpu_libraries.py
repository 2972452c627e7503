"""Whether this machine's driver and GPU libraries are those that a stage needs, before anything is loaded."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from dasd_megatron.utils.errors import UserError

Version = tuple[int, ...]

# Least versions. Transformer Engine 2.20 brought what Megatron-Core 0.19 asks it for, and needs cuDNN 9.3.
TRANSFORMER_ENGINE: Version = (2, 20)
CUDNN: Version = (9, 3)
# Attention sinks (gpt-oss) over packed documents: before, their gradients were wrong or had no kernel
# (https://github.com/NVIDIA/TransformerEngine/issues/3249, https://github.com/NVIDIA/TransformerEngine/issues/3470).
CUDNN_WITH_SINKS: Version = (9, 26)
DRIVER = Path("/proc/driver/nvidia/version")


def check_gpu_libraries(sinks: bool) -> None:
    """Raises UserError where they aren't. `sinks`: whether the model's attention has some."""
    if not torch.cuda.is_available():
        problem = driver_problem(DRIVER, torch.version.cuda, os.environ)
    elif importlib.util.find_spec("transformer_engine") is None:
        problem = (
            "training on a GPU needs Transformer Engine, which isn't installed: take the image, or "
            "pip install dasd-megatron[gpu]"
        )
    else:
        from transformer_engine.pytorch.utils import get_cudnn_version

        found = parsed_version(importlib.metadata.version("transformer-engine"))
        problem = library_problem(found, get_cudnn_version(), sinks)
    if problem is not None:
        raise UserError(problem)


def library_problem(transformer_engine: Version, cudnn: Version, sinks: bool) -> str | None:
    """What is too old, and what to do; None where nothing is."""
    if transformer_engine < TRANSFORMER_ENGINE:
        return (
            f"Transformer Engine {_shown(transformer_engine)} is too old: {_shown(TRANSFORMER_ENGINE)} or later is needed; build "
            "the image from this repository's Dockerfile"
        )
    needed, reason = (CUDNN_WITH_SINKS, " for attention sinks over packed documents") if sinks else (CUDNN, "")
    if cudnn < needed:
        return (
            f"cuDNN {_shown(cudnn)} is too old: {_shown(needed)} or later is needed{reason}; build the image on a newer BASE, or "
            "install a newer one where torch came from pip (nvidia-cudnn-cu13; -cu12 where torch is built for CUDA 12)"
        )
    return None


def driver_problem(driver: Path, built_for: str | None, environment: Mapping[str, str]) -> str | None:
    """Why a machine with NVIDIA's driver has no GPU that torch can use, where that isn't asked for; it would train on the CPU."""
    if not driver.is_file() or built_for is None or environment.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1"):
        return None
    version = re.search(r"Kernel Module.*?(\d+\.[\d.]+)", driver.read_text())
    return (
        f"this machine has NVIDIA's driver {version[1] if version else ''}, but torch, built for CUDA {built_for}, finds no GPU "
        "that it can use: update the driver, or give the job GPUs; to train on the CPU, set CUDA_VISIBLE_DEVICES to nothing"
    )


def cudnn_version(number: int) -> Version:
    """From cuDNN's own number, 92600 for 9.26.0."""
    return number // 10000, number // 100 % 100, number % 100


def parsed_version(version: str) -> Version:
    """From a package's version: its first three numbers."""
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def _shown(version: Version) -> str:
    return ".".join(map(str, version))

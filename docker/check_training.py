"""Fails the image's build unless training runs on the base's own GPU packages, these are new enough, and it can be imported.

/opt/training/bin/python check_training.py
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from importlib import import_module
from importlib.metadata import distributions

# Built for one another and for the base's CUDA: each must be the base's.
GPU_PACKAGES = re.compile(r"torch|triton|pytorch-triton|transformer-engine.*|apex|flash-attn.*|nvidia-.*")
# dasd_megatron.training comes before Megatron: with it Megatron loads where there is no GPU, as in a build.
IMPORTED = ("torch", "dasd_megatron.training", "megatron.core")


def gpu_packages(folders: Iterable[str]) -> dict[str, str]:
    """Name -> version of the GPU packages in these folders."""
    found: dict[str, str] = {}
    for distribution in distributions(path=list(folders)):
        name = re.sub(r"[-_.]+", "-", distribution.name).lower()
        if GPU_PACKAGES.fullmatch(name):
            found.setdefault(name, distribution.version)
    return found


def too_old(base: Mapping[str, str]) -> str | None:
    """What a model without attention sinks needs and the base hasn't; a base without Transformer Engine trains on the CPU."""
    import torch

    from dasd_megatron.training.gpu_libraries import cudnn_version, library_problem, parsed_version

    if "transformer-engine" not in base:
        return None
    cudnn = torch.backends.cudnn.version() or 0
    return library_problem(parsed_version(base["transformer-engine"]), cudnn_version(cudnn), sinks=False)


def main() -> int:
    inside = {folder for folder in sys.path if folder.startswith(f"{sys.prefix}/")}
    base = gpu_packages(folder for folder in sys.path if folder not in inside)
    if "torch" not in base:
        print("error: the base brings no torch; BASE must be an NGC PyTorch image", file=sys.stderr)
        return 1
    if own := gpu_packages(inside):
        listed = ", ".join(f"{name} {version}" for name, version in sorted(own.items()))
        print(f"error: {listed}: in {sys.prefix}, where it takes the place of the base's", file=sys.stderr)
        return 1
    for module in IMPORTED:
        import_module(module)
    if problem := too_old(base):
        print(f"error: {problem}", file=sys.stderr)
        return 1
    print("the base's GPU packages:", ", ".join(f"{name} {version}" for name, version in sorted(base.items())))
    return 0


if __name__ == "__main__":
    sys.exit(main())

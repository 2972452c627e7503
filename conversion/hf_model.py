"""A Hugging Face model folder: its config and family, and its tensors from safetensors, one at a time."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from conversion.gpt_oss import GPT_OSS
from conversion.llama import LLAMA
from conversion.mapping import Family
from conversion.mxfp4 import BLOCKS, SCALES, unpack
from conversion.qwen2 import QWEN2
from conversion.qwen3 import QWEN3
from conversion.qwen3_moe import QWEN3_MOE
from conversion.rope import Rope, rope
from dasd_megatron.errors import UserError
from dasd_megatron.recipe.preflight import read_config
from dasd_megatron.recipe.shape import Shape

FAMILIES = {family.architecture: family for family in (QWEN3, QWEN3_MOE, QWEN2, LLAMA, GPT_OSS)}
INDEX = "model.safetensors.index.json"


class HFModel:
    """Read access. Raises UserError for a folder that is no model of a known family."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = read_config(folder)
        architecture = (self.config.get("architectures") or ["(none named)"])[0]
        if architecture not in FAMILIES:
            raise UserError(
                f"{folder}: the architecture {architecture} isn't supported; supported: {', '.join(FAMILIES)}"
            )
        self.family: Family = FAMILIES[architecture]
        self.family.check(self.config, str(folder / "config.json"))

    @cached_property
    def shape(self) -> Shape:
        """The model's sizes."""
        return Shape.of(self.config, self.folder)

    @cached_property
    def rope(self) -> Rope:
        """The rotary embedding. Raises UserError for a kind that isn't supported."""
        return rope(self.config, self.shape.head_dim, str(self.folder / "config.json"))

    @cached_property
    def _files(self) -> dict[str, Path]:
        """Tensor name -> file."""
        index = self.folder / INDEX
        if index.is_file():
            try:
                weight_map = json.loads(index.read_text())["weight_map"]
                return {name: self.folder / file for name, file in weight_map.items()}
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"{index}: damaged: {error!r}; fetch the model again") from None
        path = self.folder / "model.safetensors"
        if not path.is_file():
            raise UserError(
                f"{self.folder}: no safetensors file; other formats (pickle) aren't read, for they can run code"
            )
        with _open(path) as file:
            return dict.fromkeys(file.keys(), path)

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor, unpacked. Raises UserError where it is missing or its file is damaged."""
        if name not in self._files and name + BLOCKS in self._files:
            packed = zip(self.tensor(name + BLOCKS), self.tensor(name + SCALES), strict=True)
            return torch.stack([unpack(blocks, scales).mT for blocks, scales in packed])
        path = self._files.get(name)
        if path is None:
            raise UserError(f"{self.folder}: the tensor {name} is missing")
        with _open(path) as file:
            content: torch.Tensor = file.get_tensor(name)
        return content


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: damaged or missing: {error}") from None

"""A Hugging Face model folder: its config and family, and its tensors from safetensors, one at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from conversion.mapping import Family, Shape
from conversion.qwen3 import QWEN3
from dasd_megatron.errors import UserError

FAMILIES = {family.architecture: family for family in (QWEN3,)}
INDEX = "model.safetensors.index.json"


class HFModel:
    """Read access. Raises UserError for a folder that is no model of a known family."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.config: dict[str, Any] = json.loads((folder / "config.json").read_text())
        except FileNotFoundError:
            raise UserError(f"{folder}: no config.json, so this is no Hugging Face model folder") from None
        except ValueError as error:
            raise UserError(f"{folder / 'config.json'}: not valid JSON: {error}") from None
        architecture = (self.config.get("architectures") or ["(none named)"])[0]
        if architecture not in FAMILIES:
            raise UserError(
                f"{folder}: the architecture {architecture} isn't supported; supported: {', '.join(FAMILIES)}"
            )
        self.family: Family = FAMILIES[architecture]
        self.family.check(self.config, str(folder / "config.json"))

    @cached_property
    def shape(self) -> Shape:
        """Sizes that the conversion table needs."""
        config = self.config
        return Shape(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            heads=config["num_attention_heads"],
            query_groups=config["num_key_value_heads"],
            head_dim=config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"],
            vocabulary=config["vocab_size"],
            tied=config.get("tie_word_embeddings", False),
        )

    @property
    def rope_theta(self) -> float:
        """Base of the rotary embedding. Raises UserError for scaled variants, which aren't supported."""
        rope: Mapping[str, Any] = self.config.get("rope_parameters") or {}
        if rope.get("rope_type", "default") != "default" or set(rope) - {"rope_type", "rope_theta"}:
            raise UserError(
                f"{self.folder / 'config.json'}: rope_parameters={dict(rope)} isn't supported; only the default type is"
            )
        return float(rope.get("rope_theta", self.config.get("rope_theta", 10_000.0)))

    @cached_property
    def _files(self) -> dict[str, Path]:
        """Tensor name -> file."""
        index = self.folder / INDEX
        if index.is_file():
            return {name: self.folder / file for name, file in json.loads(index.read_text())["weight_map"].items()}
        path = self.folder / "model.safetensors"
        if not path.is_file():
            raise UserError(
                f"{self.folder}: no safetensors file; other formats (pickle) aren't read, for they can run code"
            )
        with _open(path) as file:
            return dict.fromkeys(file.keys(), path)

    def tensor(self, name: str) -> torch.Tensor:
        """One tensor. Raises UserError where it is missing or its file is damaged."""
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

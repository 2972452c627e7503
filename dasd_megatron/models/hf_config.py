"""What can be known of model folders before a run begins, without torch: mistakes must not surface after days of work."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dasd_megatron.models.families.registry import FAMILIES
from dasd_megatron.models.parameter_mapping import ModelFamily
from dasd_megatron.models.shape import ModelShape
from dasd_megatron.utils.errors import UserError


def check_model_folder(key: str, folder: Path) -> None:
    """Raises UserError unless `folder` holds a config, a fast tokenizer and a chat template."""
    if not folder.is_dir():
        raise UserError(
            f"{key}: {folder}: no such model folder; give a folder with config.json, safetensors and a tokenizer"
        )
    if not (folder / "config.json").is_file():
        raise UserError(f"{key}: {folder}: no config.json, so this is no Hugging Face model folder")
    read_config(folder)
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"{key}: {folder}: no tokenizer.json; save the tokenizer there with save_pretrained")
    if not _has_chat_template(folder):
        raise UserError(f"{key}: {folder}: no chat template; put the model's chat_template.jinja into the folder")


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as a mapping. Raises UserError where it isn't one."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{folder}: no config.json, so this is no Hugging Face model folder") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: can't be read as JSON: {error}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path}: must be a mapping")
    return config


def max_positions(folder: Path) -> int | None:
    """The longest sequence that the model is made for, where its config says so."""
    positions: int | None = read_config(folder).get("max_position_embeddings")
    return positions


def positive_int(config: Mapping[str, Any], folder: Path, name: str) -> int:
    """A positive whole number of config.json. Raises UserError where it is missing or something else."""
    value = config.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise UserError(f"{folder / 'config.json'}: {name} must be a positive whole number, not {value!r}")
    return value


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or (folder / "chat_template.json").is_file():
        return True
    try:
        return bool(json.loads((folder / "tokenizer_config.json").read_text()).get("chat_template"))
    except (OSError, ValueError, AttributeError):
        return False


def shape_of(config: Mapping[str, Any], folder: Path) -> ModelShape:
    """The model's sizes, by config.json. Raises UserError where one is missing or no number.

    Of an architecture that isn't among the families (a teacher may be anything that the engine runs), what can be known of it.
    """

    def number(name: str) -> int:
        return positive_int(config, folder, name)

    # transformers 5 writes the number of experts under another name than before.
    experts = next((number(name) for name in ("num_experts", "num_local_experts") if name in config), 0)
    top_k = number("num_experts_per_tok") if experts else 0
    if top_k > experts:
        raise UserError(f"{folder / 'config.json'}: num_experts_per_tok={top_k} of {experts} experts")
    layer_types = config.get("layer_types")
    windowed = layer_types.count("sliding_attention") if isinstance(layer_types, list) else 0
    tied = config.get("tie_word_embeddings", False)
    if not isinstance(tied, bool):
        raise UserError(f"{folder / 'config.json'}: tie_word_embeddings must be true or false, not {tied!r}")
    heads, groups = number("num_attention_heads"), number("num_key_value_heads")
    if heads % groups:
        raise UserError(f"{folder / 'config.json'}: num_key_value_heads={groups} doesn't divide the {heads} heads")
    family = family_of(config)
    ffn = "moe_intermediate_size" if experts and "moe_intermediate_size" in config else "intermediate_size"
    return ModelShape(
        layers=number("num_hidden_layers"),
        hidden=number("hidden_size"),
        heads=heads,
        query_groups=groups,
        head_dim=number("head_dim") if config.get("head_dim") else number("hidden_size") // heads,
        ffn_hidden_size=number(ffn if family is None else family.ffn_field),
        vocabulary=number("vocab_size"),
        experts=experts,
        top_k=top_k,
        tied=tied,
        window=number("sliding_window") if windowed else 0,
        windowed_layers=windowed,
        **({} if family is None else family.traits),
    )


def architecture_of(config: Mapping[str, Any]) -> str | None:
    """The name under `architectures`, where there is one."""
    named = config.get("architectures")
    first = named[0] if isinstance(named, list) and named else named
    return first if isinstance(first, str) else None


def family_of(config: Mapping[str, Any]) -> ModelFamily | None:
    """The model's family; None where it isn't among those that can be trained and converted."""
    architecture = architecture_of(config)
    return FAMILIES.get(architecture) if architecture in FAMILIES.names() else None

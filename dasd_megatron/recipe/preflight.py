"""What can be known of model folders before a run begins, without torch: mistakes must not surface after days of work."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dasd_megatron.errors import UserError


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


def size(config: Mapping[str, Any], folder: Path, name: str) -> int:
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

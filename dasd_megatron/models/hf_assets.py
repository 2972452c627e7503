"""The assets that a checkpoint has beside its weights: the model's config, tokenizer, generation config and chat template."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch

from dasd_megatron.utils.files import write_atomically, write_json

# Folder inside a Megatron checkpoint that holds them.
HF_ASSETS = "hf"
# Files of a model folder, beside config and weights, that a tokenizer and generation need.
ASSET_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
)


def copy_hf_assets(source: Path, target: Path, config: dict[str, Any]) -> None:
    """Writes `config` into the folder `target`, and copies the other files from `source`. OSError where the system refuses."""
    target.mkdir(exist_ok=True)
    config = {name: value for name, value in config.items() if name != "quantization_config"}  # weights are unpacked
    for file in ASSET_FILES:
        if (source / file).is_file():
            with (source / file).open("rb") as content:
                write_atomically(target / file, partial(shutil.copyfileobj, content))
    write_json(target / "config.json", config)


def set_default_system_prompt(folder: Path, prompt: str) -> None:
    """Makes a folder's chat template begin conversations that have no system message with this one.

    A student that has seen it in all of its training answers worse without, and servers don't know of it.
    """
    path, config = folder / "chat_template.jinja", folder / "tokenizer_config.json"
    template = path.read_text() if path.is_file() else json.loads(config.read_text())["chat_template"]
    literal = json.dumps(prompt)  # as Jinja writes it
    default = f"{{%- set messages = [{{'role': 'system', 'content': {literal}}}] + messages -%}}"
    content = f"{{%- if messages[0]['role'] != 'system' -%}}{default}{{%- endif -%}}\n{template}"
    write_atomically(path, lambda file: file.write(content.encode()))


def with_dtype(config: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """`config`, saying the type that the weights have, under the name that it uses."""
    names = [name for name in ("dtype", "torch_dtype") if name in config] or ["dtype"]
    return {**config, **dict.fromkeys(names, str(dtype).removeprefix("torch."))}

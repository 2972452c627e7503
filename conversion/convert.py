"""Hugging Face safetensors to a Megatron distributed checkpoint and back, by the family's table."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from conversion.hf_model import INDEX, HFModel
from dasd_megatron.artifacts.files import disk_error, write_json
from dasd_megatron.errors import UserError
from dasd_megatron.recipe.schema import Parallel
from dasd_megatron.training.checkpoint import load_weights, save_weights
from dasd_megatron.training.distributed import process_groups
from dasd_megatron.training.model import ModelOptions, build_model, named_weights

# Files of a model folder besides config and weights that a tokenizer and generation need.
CARRIED = (
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
SHARD_BYTES = 5 << 30


def import_hf(hf_folder: Path, megatron: Path) -> dict[str, int]:
    """Writes the weights of `hf_folder` as a Megatron checkpoint. Returns counts."""
    hf = HFModel(hf_folder)
    with process_groups(Parallel(), seed=0), torch.no_grad():
        model = build_model(hf, Parallel(), ModelOptions(_dtype(hf)), max_length=1)
        weights: dict[str, torch.Tensor] = dict(named_weights(model))
        tensors = list(weights.values())
        for part in hf.family.parts(hf.shape):
            name, hf_names, entry = part.name, part.hf, part.entry
            sources = (hf.tensor(hf_name) for hf_name in hf_names)
            source = entry.to_megatron(tuple(s[part.expert] if part.stacked else s for s in sources), hf.shape)
            target = weights.pop(name)
            if source.shape != target.shape:
                raise UserError(
                    f"{hf_folder}: {', '.join(hf_names)} make a tensor of shape {tuple(source.shape)}, but config.json "
                    f"implies {tuple(target.shape)}"
                )
            target.copy_(source)
        assert not weights, f"the table of {hf.family.architecture} lacks {sorted(weights)}"
        save_weights(model, megatron)
        return {"tensors": len(tensors), "parameters": sum(tensor.numel() for tensor in tensors)}


def export_hf(megatron: Path, like: Path, folder: Path) -> dict[str, int]:
    """Writes a Megatron checkpoint as a Hugging Face model; config, tokenizer and templates come from `like`."""
    hf = HFModel(like)
    with process_groups(Parallel(), seed=0), torch.no_grad():
        model = build_model(hf, Parallel(), ModelOptions(_dtype(hf)), max_length=1)
        load_weights(model, megatron)
        weights = dict(named_weights(model))
        tensors: dict[str, torch.Tensor] = {}
        stacks: dict[str, list[torch.Tensor]] = {}
        for part in hf.family.parts(hf.shape):
            for hf_name, tensor in zip(part.hf, part.entry.to_hf(weights[part.name], hf.shape), strict=True):
                if part.stacked:
                    stacks.setdefault(hf_name, []).append(tensor)
                else:
                    tensors[hf_name] = tensor.contiguous()
        tensors |= {hf_name: torch.stack(experts) for hf_name, experts in stacks.items()}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _write_shards(tensors, folder)
            for file in CARRIED:
                if (like / file).is_file():
                    shutil.copyfile(like / file, folder / file)
        except OSError as error:
            raise disk_error(folder, error) from error
        # The weights of a quantised model are written in full.
        write_json(folder / "config.json", {k: v for k, v in hf.config.items() if k != "quantization_config"})
        return {"tensors": len(tensors), "parameters": sum(tensor.numel() for tensor in tensors.values())}


def convert_aside(folder: Path, convert: Callable[[Path], dict[str, int]]) -> dict[str, int]:
    """Calls `convert` with a folder beside `folder`, and gives it that name once it is whole."""
    aside = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    try:
        counts = convert(aside)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return counts


def _write_shards(tensors: dict[str, torch.Tensor], folder: Path) -> None:
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if size + tensor.nbytes > SHARD_BYTES and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / "model.safetensors", metadata={"format": "pt"})
        return
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(shard, file))
    total = sum(tensor.nbytes for tensor in tensors.values())
    (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": weight_map}, indent=2))


def _dtype(hf: HFModel) -> torch.dtype:
    name = hf.config.get("dtype") or hf.config.get("torch_dtype") or "float32"
    return torch.bfloat16 if name == "bfloat16" else torch.float32

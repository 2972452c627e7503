"""Says in a few lines what a model folder or a Megatron checkpoint holds, and what a conversion would do with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch

from conversion.megatron_checkpoint import MegatronCheckpoint
from dasd_megatron.models.checkpoint_index import INDEX
from dasd_megatron.models.hf_assets import ASSET_FILES
from dasd_megatron.models.hf_model import DTYPES, HFModel, StoredTensor
from dasd_megatron.models.rope import rope_settings
from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.progress import amount


def describe(folder: Path) -> str:
    """Lines of `name: value`. Raises UserError for a folder that is neither, or of no known family."""
    facts = _megatron(MegatronCheckpoint(folder)) if (folder / INDEX).is_file() else _hf(folder)
    width = max(map(len, facts))
    return "\n".join(f"{name + ':':{width + 1}} {value}" for name, value in facts.items())


def _hf(folder: Path) -> dict[str, str]:
    if not (folder / "config.json").is_file():
        MegatronCheckpoint(folder)  # says what is the matter
    hf = HFModel(folder)
    facts = {"kind": "Hugging Face model", **_model(hf)}
    try:
        hf.check_tensors()
    except UserError as error:
        return facts | {"conversion": f"not possible: {error}"}
    stored = hf.tensors.values()
    files = {tensor.file for tensor in stored}
    return facts | {
        "dtype": _dtypes((_stored_as(tensor), _numel(tensor.size)) for tensor in stored),
        "shards": _files(files),
        "assets": _assets(folder),
        "conversion": f"{len(hf.tensors):,} tensors make {len({part.key for part in hf.parts}):,} of a Megatron checkpoint",
    }


def _megatron(checkpoint: MegatronCheckpoint) -> dict[str, str]:
    facts = {"kind": f"Megatron checkpoint ({'of a training run' if checkpoint.has_optimizer else 'weights alone'})"}
    sizes = {name: _numel(tuple(stored.size)) for name, stored in checkpoint.weights.items()}
    stored = {
        "dtype": _dtypes((str(tensor.properties.dtype), sizes[name]) for name, tensor in checkpoint.weights.items()),
        "shards": _files(checkpoint.files),
    }
    if not checkpoint.has_hf_config:
        found = f"{len(sizes):,} tensors, {sum(sizes.values()):,} parameters"
        return facts | {"weights": found} | stored | {"conversion": "export needs --like: it has no config"}
    hf = HFModel(checkpoint.hf_folder)
    facts |= _model(hf) | stored | {"assets": _assets(checkpoint.hf_folder)}
    try:
        checkpoint.check_tensors(hf.parts)
    except UserError as error:
        return facts | {"conversion": f"not possible: {error}"}
    names = {name for part in hf.parts for name in part.hf}
    return facts | {
        "conversion": f"{len(sizes):,} tensors make {len(names):,} of a Hugging Face model; any layout loads it"
    }


def _model(hf: HFModel) -> dict[str, str]:
    shape = hf.shape
    total = sum(part.numel for part in hf.parts)
    idle = sum(part.numel for part in hf.parts if part.expert is not None and part.expert >= shape.top_k)
    experts = f", {shape.experts} experts of which {shape.top_k} a token" if shape.experts else ""
    return {
        "family": hf.family.architecture,
        "parameters": f"{total:,}" + (f", {total - idle:,} of them for each token" if shape.experts else ""),
        "layers": f"{shape.layers}, hidden {shape.hidden}, feed-forward {shape.ffn_hidden_size}{experts}",
        "heads": f"{shape.heads}, {shape.query_groups} of keys and values, of dimension {shape.head_dim}",
        "vocabulary": f"{shape.vocabulary:,}, head {'tied to' if shape.tied else 'apart from'} the embedding",
        "rope": _rope(hf),
    }


def _rope(hf: HFModel) -> str:
    kind, base, settings = rope_settings(hf.config, "")
    more = "".join(f", {name} {value}" for name, value in settings.items())
    return f"{kind}, base {base:,.0f}{more}, positions {hf.max_positions}"


def _dtypes(tensors: Iterable[tuple[str, int]]) -> str:
    counts: Counter[str] = Counter()
    for dtype, numel in tensors:
        counts[dtype.removeprefix("torch.")] += numel
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{dtype} ({100 * count / counts.total():.1f}%)" for dtype, count in counts.most_common())


def _stored_as(tensor: StoredTensor) -> str:
    return "mxfp4 (unpacked to bfloat16)" if tensor.packed else str(DTYPES.get(tensor.dtype, tensor.dtype))


def _files(files: Iterable[Path]) -> str:
    sizes = [path.stat().st_size for path in files]
    return f"{len(sizes)} files, {amount(sum(sizes))}"


def _assets(folder: Path) -> str:
    return ", ".join(name for name in ASSET_FILES if (folder / name).is_file()) or "no tokenizer, no template"


def _numel(size: tuple[int, ...]) -> int:
    return int(torch.Size(size).numel())

"""Compares a Hugging Face model with a Megatron checkpoint: what their configs mean, and tensor by tensor."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from conversion.megatron_checkpoint import MegatronCheckpoint
from conversion.safetensors_writer import bytes_of
from conversion.worker_pool import advance, work
from dasd_megatron.models.hf_assets import ASSET_FILES
from dasd_megatron.models.hf_model import HFModel
from dasd_megatron.models.parameter_mapping import ParamInstance
from dasd_megatron.models.rope import rope_settings


@dataclass(frozen=True)
class TensorDifference:
    """A Hugging Face tensor that isn't what the checkpoint has of it: how many elements, and the largest difference."""

    name: str
    elements: int
    of: int
    largest: float
    at: tuple[int, ...]

    def __str__(self) -> str:
        where = f"by up to {self.largest:.3g}, at {list(self.at)}"
        return f"{self.name}: {self.elements:,} of {self.of:,} elements differ, {where}"

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return asdict(self)


@dataclass(frozen=True)
class TensorComparison:
    """All tensors: those that differ, and a hash of the checkpoint's weights that doesn't depend on how they are stored."""

    compared: int
    rounded_to: list[str]
    differences: list[TensorDifference]
    sha256: str


def compare_tensors(hf: HFModel, checkpoint: MegatronCheckpoint) -> TensorComparison:
    """Every tensor, bit by bit; where the checkpoint has another type, after rounding to it.

    Raises UserError where one of the two isn't a whole model, or they aren't of the same model.
    """
    hf.check_tensors()
    checkpoint.check_tensors(hf.parts)

    def compare(parts: Sequence[ParamInstance]) -> tuple[list[TensorDifference], bytes]:
        differences, digest = [], hashlib.sha256()
        for part in parts:
            found, content = _compare_part(hf, checkpoint, part)
            differences += found
            digest.update(content)
            advance(checkpoint.dtype(part).itemsize * part.numel)
        return differences, digest.digest()

    total = sum(checkpoint.dtype(part).itemsize * part.numel for part in hf.parts)
    results = work("compare tensors", compare, _by_layer(hf.parts), total)
    rounded = {
        str(checkpoint.dtype(part)) for part in hf.parts for name in part.hf if hf.dtype(name) != checkpoint.dtype(part)
    }
    return TensorComparison(
        compared=len({name for part in hf.parts for name in part.hf}),
        rounded_to=sorted(name.removeprefix("torch.") for name in rounded),
        differences=[difference for found, _ in results for difference in found],
        sha256=hashlib.sha256(b"".join(digest for _, digest in results)).hexdigest(),
    )


def compare_models(hf: HFModel, checkpoint_hf: HFModel) -> list[str]:
    """What shapes the model and differs between its config and the checkpoint's, by meaning rather than spelling."""
    theirs, ours = _meaning(hf), _meaning(checkpoint_hf)
    found = [
        f"{name} is {theirs.get(name)!r}, but {ours.get(name)!r} in the checkpoint"
        for name in sorted({*theirs, *ours})
        if theirs.get(name) != ours.get(name)
    ]
    if not _same_rope(hf, checkpoint_hf):
        found.append(f"rope is {_rope(hf)}, but {_rope(checkpoint_hf)} in the checkpoint")
    return found


def compare_files(hf: Path, checkpoint_hf: Path) -> list[str]:
    """Tokenizer, template and generation files that aren't the same in both folders."""
    return [name for name in ASSET_FILES if _hash(hf / name) != _hash(checkpoint_hf / name)]


def _meaning(hf: HFModel) -> dict[str, Any]:
    """Sizes, and what else Megatron builds the model from."""
    return {
        "family": hf.family.architecture,
        **vars(hf.shape),
        "rms_norm_eps": hf.norm_epsilon,
        **hf.megatron_arguments,
    }


def _rope(hf: HFModel) -> str:
    kind, base, settings = rope_settings(hf.config, str(hf.folder))
    return f"{kind!r} with base {base:g}" + "".join(f", {name} {value}" for name, value in settings.items())


def _same_rope(hf: HFModel, checkpoint_hf: HFModel) -> bool:
    ours, theirs = checkpoint_hf.rope, hf.rope
    return ours.attention_factor == theirs.attention_factor and torch.equal(
        ours.inverse_frequencies, theirs.inverse_frequencies
    )


def _compare_part(
    hf: HFModel, checkpoint: MegatronCheckpoint, part: ParamInstance
) -> tuple[list[TensorDifference], bytes]:
    parameter = checkpoint.parameter(part).contiguous()
    digest = hashlib.sha256(f"{part.key} {part.index} {parameter.dtype} {list(parameter.shape)}".encode())
    digest.update(bytes_of(parameter))
    if torch.equal(_bits(hf.parameter(part).to(parameter.dtype)), _bits(parameter)):
        return [], digest.digest()
    found = []
    for name, ours, theirs in zip(part.hf, part.entry.to_hf(parameter, hf.shape), hf.sources(part), strict=True):
        theirs = theirs.to(ours.dtype)
        difference = (ours.float() - theirs.float()).abs()
        unequal = _bits(ours) != _bits(theirs)
        if unequal.any():
            place = int(difference.nan_to_num(float("inf")).argmax())
            at = tuple(int(index) for index in torch.unravel_index(torch.tensor(place), difference.shape))
            at = (part.expert, *at) if part.stacked and part.expert is not None else at
            largest = float(difference.flatten()[place])
            found.append(TensorDifference(name, int(unequal.sum()), unequal.numel(), largest, at))
    return found, digest.digest()


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    """The elements as numbers that are equal where all bits are: NaN equals itself, and 0.0 isn't -0.0."""
    return tensor.contiguous().view(torch.int16 if tensor.element_size() == 2 else torch.int32)


def _by_layer(parts: Sequence[ParamInstance]) -> list[list[ParamInstance]]:
    layers: dict[tuple[int | None, str], list[ParamInstance]] = {}
    for part in parts:
        layers.setdefault((part.layer, "" if part.layer is not None else part.key), []).append(part)
    return list(layers.values())


def _hash(path: Path) -> str | None:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None

"""Hugging Face safetensors to a Megatron distributed checkpoint and back, by the family's table, parameter by parameter.

Neither side is ever in memory as a whole: what is read stays mapped to its file, and each worker holds the parameter at hand.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import torch

from conversion.checkpoint_writer import Written, files_of, write_index, write_parts
from conversion.compare import compare_models
from conversion.megatron_checkpoint import MegatronCheckpoint
from conversion.output_folder import check_free_space
from conversion.safetensors_writer import SafetensorsWriter, TensorToWrite
from conversion.worker_pool import advance, work
from dasd_megatron.models.hf_assets import HF_ASSETS, copy_hf_assets, with_dtype
from dasd_megatron.models.hf_model import HFModel
from dasd_megatron.models.parameter_mapping import ParamInstance
from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.files import disk_error
from dasd_megatron.utils.progress import amount


@dataclass(frozen=True)
class Converted:
    """What a conversion did."""

    parameters: int
    tensors: int
    nbytes: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.tensors:,} tensors, {self.parameters:,} parameters, {amount(self.nbytes)} in {self.seconds:.1f} s"
        )

    @property
    def counts(self) -> dict[str, int]:
        """For a manifest."""
        return {"tensors": self.tensors, "parameters": self.parameters}


def import_hf(hf_folder: Path, megatron: Path, dtype: torch.dtype | None = None) -> Converted:
    """Writes the weights of `hf_folder` as a Megatron checkpoint into the folder `megatron`.

    They keep their types unless `dtype` says another. Raises UserError for a model that isn't whole, known and understood.
    """
    begin = time.monotonic()
    hf = HFModel(hf_folder)
    hf.check_tensors()
    if dtype is None:
        hf.check_types()
    _ = hf.rope  # refuses what isn't understood of it
    sizes = {part: part.numel * (dtype or hf.dtype(part.hf[0])).itemsize for part in hf.parts}
    total = sum(sizes.values())

    def content(part: ParamInstance) -> torch.Tensor:
        tensor = hf.parameter(part)
        advance(sizes[part])
        return tensor if dtype is None else _rounded(tensor, dtype, part)

    def write(file: tuple[str, list[ParamInstance]]) -> list[Written]:
        name, parts = file
        try:
            return write_parts(megatron / name, parts, content)
        except OSError as error:
            raise disk_error(megatron, error) from error

    try:
        megatron.mkdir(parents=True, exist_ok=True)
        check_free_space(megatron, total)
        files = files_of(hf.parts, sizes.__getitem__)
        written = [place for places in work("import", write, files, total) for place in places]
        write_index(megatron, hf.parts, written)
        written_as = dtype or (hf.dtype(hf.parts[0].hf[0]) if hf.quantized else None)
        copy_hf_assets(hf_folder, megatron / HF_ASSETS, with_dtype(hf.config, written_as) if written_as else hf.config)
    except OSError as error:
        raise disk_error(megatron, error) from error
    return _converted(hf.parts, total, begin)


def export_hf(megatron: Path, folder: Path, like: Path | None = None) -> Converted:
    """Writes a Megatron checkpoint as a Hugging Face model into the folder `folder`.

    Config, tokenizer and templates are those that the checkpoint has, or those of `like`. Raises UserError where the
    checkpoint isn't whole, or isn't of that model.
    """
    begin = time.monotonic()
    checkpoint = MegatronCheckpoint(megatron)
    hf = HFModel(like or checkpoint.hf_folder)
    if like is not None and checkpoint.has_hf_config:
        _check_like(hf, HFModel(checkpoint.hf_folder))
    checkpoint.check_tensors(hf.parts)
    sizes = {part: part.numel * checkpoint.dtype(part).itemsize for part in hf.parts}
    total = sum(sizes.values())
    tensors = {
        name: TensorToWrite(size, checkpoint.dtype(part))
        for part in hf.parts
        for name, size in zip(part.hf, part.hf_shapes, strict=True)
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_free_space(folder, total)
        dtypes = {tensor.dtype for tensor in tensors.values()}
        # First of all: training may remove the checkpoint while its weights, mapped already, are still being read.
        copy_hf_assets(hf.folder, folder, with_dtype(hf.config, dtypes.pop()) if len(dtypes) == 1 else hf.config)
        writer = SafetensorsWriter(folder, tensors)

        def write(part: ParamInstance) -> None:
            pieces = part.entry.to_hf(checkpoint.parameter(part), hf.shape)
            try:
                for name, piece in zip(part.hf, pieces, strict=True):
                    writer.write(name, piece, part.expert if part.stacked else None)
            except OSError as error:
                raise disk_error(folder, error) from error
            advance(sizes[part])

        work("export", write, _taking_turns(hf.parts, lambda part: writer.file_of(part.hf[0])), total)
        writer.finish()
    except OSError as error:
        raise disk_error(folder, error) from error
    return _converted(hf.parts, total, begin)


def _check_like(like: HFModel, checkpoint_hf: HFModel) -> None:
    differing = compare_models(like, checkpoint_hf)
    if differing:
        raise UserError(
            f"{like.folder}: is of another model than the checkpoint: {'; '.join(differing)}; leave out --like"
        )


def _rounded(tensor: torch.Tensor, dtype: torch.dtype, part: ParamInstance) -> torch.Tensor:
    rounded = tensor.to(dtype)
    if not torch.equal(torch.isfinite(rounded), torch.isfinite(tensor)):
        largest = float(tensor[torch.isfinite(tensor)].abs().max())
        raise UserError(
            f"{', '.join(part.hf)}: values up to {largest:.3g} don't fit {str(dtype).removeprefix('torch.')}"
        )
    return rounded


def _taking_turns(parts: Sequence[ParamInstance], file_of: Callable[[ParamInstance], Path]) -> list[ParamInstance]:
    """One part of each file after the other: the system lets only one process at a time write to a file."""
    by_file: dict[Path, list[ParamInstance]] = {}
    for part in parts:
        by_file.setdefault(file_of(part), []).append(part)
    turns = zip_longest(*by_file.values())
    return [part for turn in turns for part in turn if part is not None]


def _converted(parts: Sequence[ParamInstance], nbytes: int, begin: float) -> Converted:
    tensors = len({name for part in parts for name in part.hf})
    return Converted(sum(part.numel for part in parts), tensors, nbytes, time.monotonic() - begin)

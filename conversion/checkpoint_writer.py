"""Writes weights as a Megatron distributed checkpoint (torch_dist), without Megatron and without a model in memory."""

from __future__ import annotations

import dataclasses
import os
import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from conversion.safetensors_writer import bytes_of
from dasd_megatron.models.checkpoint_index import INDEX, write_index_hash
from dasd_megatron.models.parameter_mapping import ParamInstance
from dasd_megatron.utils.files import underlying, write_atomically, write_json

ALIGNMENT = 64  # bytes, so that readers can use what they map into memory as it is
FILE_BYTES = 256 << 20
# What Megatron keeps of a module beside its parameters; only FP8 has something to say there.
_STATELESS = ("embedding.", "output_layer.")


@dataclass(frozen=True)
class Written:
    """Where a parameter went."""

    file: str
    offset: int
    length: int
    dtype: torch.dtype


def files_of(
    parts: Sequence[ParamInstance], size: Callable[[ParamInstance], int]
) -> list[tuple[str, list[ParamInstance]]]:
    """Shares `parts` out over files of similar size, in order. The names are Megatron's."""
    files: list[list[ParamInstance]] = [[]]
    filled = 0
    for part in parts:
        if files[-1] and filled + size(part) > FILE_BYTES:
            files.append([])
            filled = 0
        files[-1].append(part)
        filled += size(part)
    return [(f"__{number}_0.distcp", content) for number, content in enumerate(files)]


def write_parts(
    path: Path, parts: Iterable[ParamInstance], content: Callable[[ParamInstance], torch.Tensor]
) -> list[Written]:
    """Writes one file. OSError where the system refuses."""
    written = []
    with path.open("wb") as file:
        for part in parts:
            offset = file.tell() + -file.tell() % ALIGNMENT
            file.seek(offset)
            tensor = content(part)
            _save(tensor.reshape(*(1 for _ in part.index), *tensor.shape), file)
            written.append(Written(path.name, offset, file.tell() - offset, tensor.dtype))
        file.flush()
        os.fsync(file.fileno())
    return written


def write_index(folder: Path, parts: Sequence[ParamInstance], written: Sequence[Written]) -> None:
    """Writes what makes the files a checkpoint that Megatron loads in any layout."""
    metadata: dict[str, Any] = {}
    storage: dict[MetadataIndex, _StorageInfo] = {}
    for part, place in zip(parts, written, strict=True):
        start = torch.Size((*part.index, *(0 for _ in part.megatron_shape)))
        size = torch.Size((*(1 for _ in part.index), *part.megatron_shape))
        if part.key not in metadata:
            whole = torch.Size((*part.stacked_shape, *part.megatron_shape))
            metadata[part.key] = TensorStorageMetadata(TensorProperties(place.dtype), whole, [])
        metadata[part.key].chunks.append(ChunkStorageMetadata(start, size))
        storage[MetadataIndex(part.key, start)] = _StorageInfo(place.file, place.offset, place.length)
    objects = {"common_state/shard_0_1": [{}], **{name: [None] for name in extra_states(parts)}}
    metadata |= dict.fromkeys(objects, BytesStorageMetadata())
    storage |= _write_objects(folder / f"__{len({place.file for place in written})}_0.distcp", objects)
    index = Metadata(metadata, storage_data=storage)
    write_atomically(folder / INDEX, lambda file: pickle.dump(index, file))
    write_index_hash(folder)
    write_json(folder / "metadata.json", {"sharded_backend": "torch_dist", "sharded_backend_version": 1})


def extra_states(parts: Iterable[ParamInstance]) -> list[str]:
    """Names of the extra states that Megatron looks for beside the parameters: one a module, empty but for FP8."""
    names: dict[str, None] = {}
    for part in parts:
        module, _, parameter = part.key.rpartition(".")
        if parameter == "layer_norm_weight" or part.key.startswith(_STATELESS) or ".router" in part.key:
            continue
        place = ".".join(map(str, part.index)) or "0"
        names[f"{module}._extra_state/shard_{place}_{'.'.join(map(str, part.stacked_shape)) or '1'}"] = None
    return list(names)


def _write_objects(path: Path, objects: dict[str, Any]) -> dict[MetadataIndex, _StorageInfo]:
    """Writes each distinct object once: thousands of extra states are all the same."""
    places: dict[str, _StorageInfo] = {}
    storage = {}
    with path.open("wb") as file:
        for name, content in objects.items():
            if repr(content) not in places:
                offset = file.tell()
                torch.save(content, file)
                places[repr(content)] = _StorageInfo(path.name, offset, file.tell() - offset)
            storage[MetadataIndex(name)] = dataclasses.replace(places[repr(content)])
        file.flush()
        os.fsync(file.fileno())
    return storage


def _save(tensor: torch.Tensor, file: IO[bytes]) -> None:
    """torch.save writes the whole storage that a tensor is a view of: give it one of its own, where possible without a copy."""
    tensor = tensor.detach().contiguous()
    if tensor.untyped_storage().nbytes() != tensor.nbytes:
        tensor = torch.frombuffer(bytes_of(tensor), dtype=tensor.dtype).reshape(tensor.shape)
    try:
        torch.save(tensor, file)
    except RuntimeError as error:
        raise underlying(error) or error  # noqa: B904 (the same error)

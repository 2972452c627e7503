"""Safetensors files whose tensors are written piece by piece, in any order and by several processes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dasd_megatron.models.hf_model import DTYPES, INDEX, WEIGHTS
from dasd_megatron.utils.files import sync, write_json

SHARD_BYTES = 2 << 30
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class _Place:
    file: Path
    begin: int


@dataclass(frozen=True)
class TensorToWrite:
    """Its size, and its type."""

    size: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the content."""
        return int(torch.Size(self.size).numel()) * self.dtype.itemsize


class SafetensorsWriter:
    """The files of a model's weights, laid out from the tensors' sizes. OSError where the system refuses a write."""

    def __init__(self, folder: Path, tensors: Mapping[str, TensorToWrite]) -> None:
        self._places: dict[str, _Place] = {}
        self._tensors = tensors
        shards = _shards(tensors)
        files = [WEIGHTS] if len(shards) == 1 else [_shard_name(n, len(shards)) for n in range(1, len(shards) + 1)]
        self.files = [folder / file for file in files]
        for path, names in zip(self.files, shards, strict=True):
            self._lay_out(path, names)
        if len(shards) > 1:
            weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
            total = sum(tensor.nbytes for tensor in tensors.values())
            write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})

    def write(self, name: str, content: torch.Tensor, index: int | None = None) -> None:
        """Writes a tensor, or what it holds at `index` of its first dimension."""
        place, tensor = self._places[name], self._tensors[name]
        expected = tensor.size if index is None else tensor.size[1:]
        assert (tuple(content.shape), content.dtype) == (expected, tensor.dtype), name
        begin = place.begin + (index or 0) * content.nbytes
        view = bytes_of(content.contiguous())
        descriptor = os.open(place.file, os.O_WRONLY)
        try:
            while view:  # the system takes 2 GiB at once
                count = os.pwrite(descriptor, view, begin)
                view, begin = view[count:], begin + count
        finally:
            os.close(descriptor)

    def file_of(self, name: str) -> Path:
        """Where a tensor goes."""
        return self._places[name].file

    def finish(self) -> None:
        """Makes the files durable."""
        for path in self.files:
            sync(path)

    def _lay_out(self, path: Path, names: list[str]) -> None:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        begin = 0
        for name in names:
            tensor = self._tensors[name]
            offsets = [begin, begin + tensor.nbytes]
            header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.size), "data_offsets": offsets}
            begin += tensor.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + begin)
        for name in names:
            start = header[name]["data_offsets"][0]  # type: ignore[index]
            self._places[name] = _Place(path, 8 + len(text) + start)


def _shards(tensors: Mapping[str, TensorToWrite]) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in tensors.items():
        if shards[-1] and filled + tensor.nbytes > SHARD_BYTES:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += tensor.nbytes
    return shards


def _shard_name(number: int, count: int) -> str:
    return f"model-{number:05d}-of-{count:05d}.safetensors"


def bytes_of(tensor: torch.Tensor) -> memoryview:
    """The memory of a contiguous tensor on the host."""
    array: Any = tensor.view(-1).view(torch.uint8).numpy()
    return memoryview(array)

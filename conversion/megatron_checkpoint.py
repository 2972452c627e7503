"""A Megatron distributed checkpoint (torch_dist): its tensors, whichever layout wrote them, mapped into memory one at a time."""

from __future__ import annotations

import io
import mmap
import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch.distributed.checkpoint.metadata import MetadataIndex, TensorStorageMetadata

from dasd_megatron.models.checkpoint_index import read_index
from dasd_megatron.models.checkpoint_item import check_item
from dasd_megatron.models.hf_assets import HF_ASSETS
from dasd_megatron.models.parameter_mapping import ParamInstance
from dasd_megatron.utils.errors import UserError

# Beside weights a checkpoint holds the optimizer's state, random states and other values of a training run.
_NOT_WEIGHTS = ("optimizer.", "random/", "common_state/", "rng_state/", "rerun_state_machine_state/")
_VOCABULARY = "vocabulary"
# Rows that tensor parallelism adds to the vocabulary: Megatron's tools make it a multiple of 128 times the number of ranks.
_MOST_PADDING = 128 * 64


@dataclass(frozen=True)
class _Chunk:
    """One piece of a tensor."""

    start: tuple[int, ...]
    size: tuple[int, ...]


class MegatronCheckpoint:
    """Read access. Raises UserError for a folder that is none, or whose files are truncated or damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._index = read_index(folder)
        self._checked: set[tuple[str, int]] = set()
        # All at once: mapped files can still be read after training has removed this checkpoint in favour of newer ones.
        self._maps = {file: self._map(file, end) for file, end in self._ends().items()}

    @property
    def files(self) -> list[Path]:
        """Those that hold tensors."""
        return [self.folder / file for file in self._maps]

    @property
    def has_optimizer(self) -> bool:
        """Whether a training run can resume from it."""
        return any(name.startswith("optimizer.") for name in self._index.state_dict_metadata)

    @property
    def has_hf_config(self) -> bool:
        """Whether it says which model it is of; Megatron's own tools don't write that."""
        return (self.folder / HF_ASSETS / "config.json").is_file()

    @property
    def hf_folder(self) -> Path:
        """The model's config and tokenizer. Raises UserError where the checkpoint has none."""
        folder = self.folder / HF_ASSETS
        if not self.has_hf_config:
            raise UserError(
                f"{self.folder}: has no {HF_ASSETS}/config.json; say with --like which Hugging Face folder has its config"
            )
        return folder

    @cached_property
    def weights(self) -> dict[str, TensorStorageMetadata]:
        """The model's tensors by name."""
        return {
            name: stored
            for name, stored in self._index.state_dict_metadata.items()
            if isinstance(stored, TensorStorageMetadata) and not name.startswith(_NOT_WEIGHTS)
        }

    def dtype(self, part: ParamInstance) -> torch.dtype:
        """Of one parameter."""
        dtype: torch.dtype = self.weights[part.key].properties.dtype
        return dtype

    def check_tensors(self, parts: Sequence[ParamInstance]) -> None:
        """Raises UserError unless the weights are exactly `parts`, in their sizes."""
        wanted = {part.key: part for part in parts}
        missing = [key for key in wanted if key not in self.weights]
        if missing:
            raise UserError(f"{self.folder}: no {missing[0]} in it, so it is no checkpoint of this model")
        surplus = [key for key in self.weights if key not in wanted]
        if surplus:
            raise UserError(
                f"{self.folder}: holds {surplus[0]}, which this model doesn't have; a conversion would lose it"
            )
        for key, part in wanted.items():
            size, expected = tuple(self.weights[key].size), (*part.stacked_shape, *part.megatron_shape)
            rows = len(part.stacked_shape)
            if part.entry.megatron_dims[0] == _VOCABULARY and 0 <= size[rows] - expected[rows] < _MOST_PADDING:
                size = (*size[:rows], expected[rows], *size[rows + 1 :])
            if size != expected:
                raise UserError(f"{self.folder}: {key} is {list(size)}, but config.json implies {list(expected)}")

    def parameter(self, part: ParamInstance) -> torch.Tensor:
        """One parameter, without padding; a view of the file where one piece holds it all."""
        start = (*part.index, *(0 for _ in part.megatron_shape))
        size = (*(1 for _ in part.index), *part.megatron_shape)
        result: torch.Tensor | None = None
        missing = torch.empty(0)
        for chunk in self._chunks_of(part):
            low = [max(a, b) for a, b in zip(start, chunk.start, strict=True)]
            high = [min(a + n, b + m) for a, n, b, m in zip(start, size, chunk.start, chunk.size, strict=True)]
            if any(a >= b for a, b in zip(low, high, strict=True)):
                continue
            piece = self._read(part.key, chunk)[_slices(low, high, chunk.start)]
            if piece.shape == size:
                return piece.reshape(part.megatron_shape)
            if result is None:
                result, missing = torch.empty(size, dtype=piece.dtype), torch.ones(size, dtype=torch.bool)
            place = _slices(low, high, start)
            result[place], missing[place] = piece, False
        if result is None or missing.any():
            raise UserError(f"{self.folder}: pieces of {part.key} are missing")
        return result.reshape(part.megatron_shape)

    def _chunks_of(self, part: ParamInstance) -> list[_Chunk]:
        """Pieces that may hold some of a parameter."""
        stored = self._chunks[part.key]
        return (
            stored.get(part.index[0], []) if part.index else [chunk for chunks in stored.values() for chunk in chunks]
        )

    @cached_property
    def _chunks(self) -> dict[str, dict[int, list[_Chunk]]]:
        """Pieces of every tensor, by the first coordinate (of most: the layer)."""
        found: dict[str, dict[int, list[_Chunk]]] = {}
        for name, stored in self.weights.items():
            by_first: dict[int, list[_Chunk]] = defaultdict(list)
            for chunk in {_Chunk(tuple(chunk.offsets), tuple(chunk.sizes)) for chunk in stored.chunks}:
                by_first[chunk.start[0]].append(chunk)
            found[name] = by_first
        return found

    def _read(self, name: str, chunk: _Chunk) -> torch.Tensor:
        place = self._index.storage_data[MetadataIndex(name, chunk.start)]
        entry = memoryview(self._maps[place.relative_path])[place.offset : place.offset + place.length]
        if (place.relative_path, place.offset) not in self._checked:
            file = self._maps[place.relative_path]
            check_item(file, place.offset, place.length, str(self.folder / place.relative_path))
            self._checked.add((place.relative_path, place.offset))
        try:
            # On the device "meta" torch reads what the tensor is, and where in the file its content begins.
            described = torch.load(io.BufferedReader(_Reader(entry)), map_location="meta", weights_only=True)
            storage = described.untyped_storage()
            begin = storage._checkpoint_offset
            content = torch.frombuffer(entry[begin : begin + storage.nbytes()], dtype=torch.uint8)
            if content.data_ptr() % described.element_size():
                content = content.clone()
            tensor = content.view(described.dtype).as_strided(
                described.shape, described.stride(), described.storage_offset()
            )
        except Exception as error:  # a damaged zip or pickle raises anything
            raise UserError(f"{self.folder / place.relative_path}: {name} is damaged: {error}") from None
        if tuple(tensor.shape) != chunk.size:
            raise UserError(
                f"{self.folder / place.relative_path}: {name} is {list(tensor.shape)}, not {list(chunk.size)}"
            )
        return tensor

    def _ends(self) -> dict[str, int]:
        """Every file, and how long it must be at least."""
        ends: dict[str, int] = {}
        for place in self._index.storage_data.values():
            ends[place.relative_path] = max(ends.get(place.relative_path, 0), place.offset + place.length)
        return ends

    def _map(self, file: str, end: int) -> mmap.mmap:
        path = self.folder / file
        if path.name != file or not path.is_file():
            raise UserError(f"{path}: missing; copy the checkpoint again")
        with path.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            if size < end:
                raise UserError(f"{path}: truncated at {size:,} of {end:,} bytes; copy the checkpoint again")
            # Private, so that torch takes it; nothing is ever written.
            return mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)


def _slices(low: Sequence[int], high: Sequence[int], origin: Sequence[int]) -> tuple[slice, ...]:
    """The box from `low` to `high`, seen from `origin`."""
    return tuple(slice(a - o, b - o) for a, b, o in zip(low, high, origin, strict=True))


class _Reader(io.RawIOBase):
    """A part of a mapped file, as a file."""

    def __init__(self, content: memoryview) -> None:
        self._content, self._position = content, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._content)}[whence]
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        content = self._content[self._position : self._position + len(buffer)]
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

"""The index of a Megatron distributed checkpoint: which tensors it holds, in which pieces, and where these lie.

The index is a pickle by Megatron's (torch.distributed.checkpoint's) design. It is read by an unpickler that knows the classes of
an index and no others, so that a checkpoint from elsewhere can't run code here.
"""

from __future__ import annotations

import io
import pickle
from enum import Enum
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata

from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.files import write_atomically
from dasd_megatron.utils.hashing import hash_file

INDEX, INDEX_HASH = ".metadata", ".metadata.sha256"
_TORCH_TYPES = {"Size", "device", "strided"}
_CLASSES = {
    "torch.distributed.checkpoint.metadata": {
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
    "torch.distributed.checkpoint.planner": {
        "BytesIOWriteData",
        "SavePlan",
        "TensorWriteData",
        "WriteItem",
        "WriteItemType",
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo", "_StoragePrefix"},
    "torch.serialization": {"_get_layout"},
    "collections": {"OrderedDict"},
}


def read_index(folder: Path) -> Metadata:
    """Raises UserError where `folder` is no distributed checkpoint, or its index is damaged or asks for anything unknown."""
    path = folder / INDEX
    if not path.is_file():
        raise UserError(f"{folder}: {_what_else(folder)}")
    written = folder / INDEX_HASH
    if written.is_file() and written.read_text().strip() != hash_file(path):
        raise UserError(f"{path}: damaged: its checksum is another than {INDEX_HASH} says")
    try:
        index: Metadata = _Unpickler(io.BytesIO(path.read_bytes())).load()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # a damaged pickle raises anything
        raise UserError(f"{path}: damaged: {error!r}") from None
    if not _is_whole(index):
        raise UserError(f"{path}: damaged: no index of a distributed checkpoint")
    return index


def write_index_hash(folder: Path) -> None:
    """Of the index that is there; by it `read_index` notices a damage that leaves a readable index. Megatron's own has none."""
    digest = hash_file(folder / INDEX)
    write_atomically(folder / INDEX_HASH, lambda file: file.write(f"{digest}\n".encode()))


def _is_whole(index: Any) -> bool:
    """Whether the unpickled object has what readers rely on: every piece of every tensor, and its place."""
    try:
        for name, stored in index.state_dict_metadata.items():
            if isinstance(stored, TensorStorageMetadata):
                _ = stored.size, stored.properties.dtype
                places = [index.storage_data[MetadataIndex(name, chunk.offsets)] for chunk in stored.chunks]
            else:
                places = [index.storage_data[MetadataIndex(name)]]
            if not all(
                place.offset >= 0 and place.length > 0 and isinstance(place.relative_path, str) for place in places
            ):
                return False
    except (AttributeError, KeyError, TypeError):
        return False
    return bool(index.state_dict_metadata)


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Only what an index is made of."""
        import torch

        if module == "torch" and (name in _TORCH_TYPES or isinstance(getattr(torch, name, None), torch.dtype)):
            return getattr(torch, name)
        if (module, name) == ("builtins", "getattr"):
            return _enum_member
        if name not in _CLASSES.get(module, ()):
            raise UserError(f"asks for {module}.{name}, which no index needs and which could run code: not read")
        return super().find_class(module, name)


def _enum_member(kind: Any, name: str) -> Enum:
    """In place of `getattr`, by which some versions of Python pickle the members of an Enum."""
    if not (isinstance(kind, type) and issubclass(kind, Enum) and name in kind.__members__):
        raise UserError(f"asks for the attribute {name} of {kind!r}, which no index needs: not read")
    return kind[name]


def _what_else(folder: Path) -> str:
    """What a folder without an index seems to be."""
    if not folder.exists():
        return "no such folder"
    if not folder.is_dir():
        return "a file, and no checkpoint folder"
    if (folder / "latest_checkpointed_iteration.txt").is_file():
        return "a folder of checkpoints; name one of its iter_* folders"
    steps = sorted(path.name for path in folder.glob("step-*") if (path / INDEX).is_file())
    if steps:
        return f"a folder of checkpoints; name one of them, such as {steps[-1]}"
    if any(folder.glob("mp_rank_*")):
        return "a checkpoint in Megatron's old format, a pickle, which can run code: not read; save it as torch_dist"
    return "no Megatron distributed checkpoint (no .metadata in it)"

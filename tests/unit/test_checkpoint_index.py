"""The index of a checkpoint: read whatever version of Python wrote it, and never as code."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from dasd_megatron.models.checkpoint_index import INDEX, read_index
from dasd_megatron.utils.errors import UserError


class ByAttribute:
    """Pickled as an attribute of a class, as Python 3.11.2, say, pickles the members of an Enum."""

    def __init__(self, owner: type, name: str) -> None:
        self.reduced = getattr, (owner, name)

    def __reduce__(self) -> Any:
        return self.reduced


def index_with(folder: Path, memory_format: object) -> Path:
    """A folder with the index of one tensor, whose memory format is pickled as given."""
    from torch.distributed.checkpoint.filesystem import _StorageInfo

    properties = (torch.float32, torch.strided, False, memory_format, False)
    size = torch.Size([2])
    tensor = TensorStorageMetadata(TensorProperties(), size, [ChunkStorageMetadata(torch.Size([0]), size)])
    tensor.properties.__class__ = StatedProperties
    tensor.properties.stated = properties  # type: ignore[attr-defined]
    index = Metadata({"weight": tensor, "extra": BytesStorageMetadata()})
    index.storage_data = {
        MetadataIndex("weight", torch.Size([0])): _StorageInfo("__0_0.distcp", 0, 8),
        MetadataIndex("extra"): _StorageInfo("__0_0.distcp", 8, 8),
    }
    (folder / INDEX).write_bytes(pickle.dumps(index))
    return folder


class StatedProperties(TensorProperties):
    """Pickled as TensorProperties with the given state."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        return TensorProperties, (), self.stated  # type: ignore[attr-defined]


@pytest.mark.parametrize("by_attribute", [False, True])
def test_members_of_an_enum_are_read_as_any_python_pickles_them(tmp_path: Path, by_attribute: bool) -> None:
    member = _MEM_FORMAT_ENCODING.TORCH_CONTIGUOUS_FORMAT
    index = read_index(index_with(tmp_path, ByAttribute(_MEM_FORMAT_ENCODING, member.name) if by_attribute else member))
    stored = index.state_dict_metadata["weight"]
    assert isinstance(stored, TensorStorageMetadata)
    assert stored.size == (2,)
    assert stored.properties.dtype == torch.float32
    assert stored.properties.memory_format == torch.contiguous_format


@pytest.mark.parametrize(("owner", "name"), [(Metadata, "__init__"), (_MEM_FORMAT_ENCODING, "__class__")])
def test_other_attributes_are_refused(tmp_path: Path, owner: type, name: str) -> None:
    with pytest.raises(UserError, match=f"asks for the attribute {name} of .*, which no index needs: not read"):
        read_index(index_with(tmp_path, ByAttribute(owner, name)))

"""How Megatron reads distributed checkpoints here: by an index that can't run code, and with a look at every checksum."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from megatron.core.dist_checkpointing.strategies import torch as torch_strategy
from torch.distributed.checkpoint.filesystem import FileSystemReader, _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from dasd_megatron.models.checkpoint_index import INDEX, read_index
from dasd_megatron.models.checkpoint_item import check_item


class CheckedReader(FileSystemReader):
    """torch's, which would unpickle the index whatever it asks for, and take damaged numbers for others."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index. Raises UserError."""
        folder = Path(self.path)
        index = _index(folder, (folder / INDEX).stat().st_mtime_ns if (folder / INDEX).is_file() else 0)
        index.storage_meta = index.storage_meta or StorageMeta()
        index.storage_meta.load_id = self.load_id
        return index

    def _slice_file(self, file: Any, sinfo: _StorageInfo) -> IO[bytes]:
        check_item(file, sinfo.offset, sinfo.length, str(Path(self.path) / sinfo.relative_path))
        return super()._slice_file(file, sinfo)


@lru_cache(maxsize=1)
def _index(folder: Path, modified: int) -> Metadata:
    """Megatron asks for it several times in a row."""
    return read_index(folder)


def use_checked_reader() -> None:
    """For all that Megatron reads in this process."""
    torch_strategy._get_filesystem_reader = lambda folder, **_: CheckedReader(folder)

"""What disks do to checkpoints."""

from __future__ import annotations

from pathlib import Path

from dasd_megatron.models.checkpoint_index import read_index


def overwrite_an_item(folder: Path) -> None:
    """Some bytes in the middle of the largest piece of a tensor: everything can still be read."""
    place = max(read_index(folder).storage_data.values(), key=lambda place: place.length)
    with (folder / place.relative_path).open("r+b") as file:
        file.seek(place.offset + place.length // 2)
        file.write(b"damage" * 4)

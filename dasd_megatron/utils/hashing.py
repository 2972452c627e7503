"""Content hashes that name artifacts and pin their inputs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from dasd_megatron.utils.errors import UserError

# Files above this are fingerprinted by their size and both ends: a 60 GB shard must not delay a dry run by minutes.
WHOLE_FILE_LIMIT = 16 << 20
END_BYTES = 1 << 20


def hash_json(content: Any) -> str:
    """SHA-256 of the canonical JSON of `content`, in hex."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a whole file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(path: Path) -> str:
    """A hash of a file, or of every file in a folder, that changes when their content does.

    Large files are read at both ends only: safetensors keep names, shapes and offsets at the start.
    Raises UserError when `path` is absent or an empty folder.
    """
    if path.is_file():
        return _fingerprint_file(path)
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder")
    files = sorted(file for file in path.rglob("*") if file.is_file())
    if not files:
        raise UserError(f"{path}: the folder is empty")
    return hash_json([[str(file.relative_to(path)), _fingerprint_file(file)] for file in files])


def _fingerprint_file(path: Path) -> str:
    size = path.stat().st_size
    if size <= WHOLE_FILE_LIMIT:
        return hash_file(path)
    digest = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(END_BYTES))
        file.seek(-END_BYTES, 2)
        digest.update(file.read())
    return digest.hexdigest()

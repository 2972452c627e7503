"""What tests fetch, once: folders in .cache, each made whole by one process while the others wait."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable
from pathlib import Path

CACHE = Path(__file__).parent.parent.parent / ".cache"


def cached_folder(name: str, make: Callable[[Path], Path]) -> Path:
    """The folder of this name. `make` gets an empty folder to work in, and returns what to keep of it."""
    folder = CACHE / name
    if folder.is_dir():
        return folder
    CACHE.mkdir(exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            temporary = CACHE / f"{name}.tmp"
            shutil.rmtree(temporary, ignore_errors=True)  # of one that was killed
            temporary.mkdir()
            make(temporary).rename(folder)
            shutil.rmtree(temporary, ignore_errors=True)
    return folder

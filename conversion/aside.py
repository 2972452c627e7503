"""Output folders that are either whole or absent."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from dasd_megatron.artifacts.files import disk_error, lock, sync
from dasd_megatron.errors import UserError


@contextlib.contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """Gives a folder beside `folder`, which gets its name at the end; on an error it's removed.

    What a killed process left there is removed by the next one. Raises UserError where `folder` exists, or is being written.
    """
    _refuse_existing(folder)
    locked = folder.with_name(f".{folder.name}.lock")
    with lock(locked, f"{folder}: another conversion is writing it ({locked})", patience=0):
        _refuse_existing(folder)
        aside = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(aside, ignore_errors=True)
        try:
            aside.mkdir(parents=True)
            yield aside
            sync(aside)
            aside.rename(folder)
            sync(folder.parent)
        except OSError as error:
            raise disk_error(folder, error) from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            locked.unlink(missing_ok=True)


def check_free_space(folder: Path, needed: int) -> None:
    """Raises UserError where the disk of `folder` has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder.parent}: {needed / 1e9:.1f} GB are needed, but {free / 1e9:.1f} GB are free; free some, or choose "
            "another disk"
        )


def _refuse_existing(folder: Path) -> None:
    if folder.exists() or folder.is_symlink():
        raise UserError(f"{folder}: exists already; name a new folder, or remove this one first")

"""Output folders that are either whole or absent."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.files import disk_error, sync
from dasd_megatron.utils.lease import hold
from dasd_megatron.utils.progress import amount


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Gives a folder beside `folder`, which gets its name at the end; on an error it's removed.

    What a killed process left there is removed by the next one. Raises UserError where `folder` exists, or is being written.
    """
    _refuse_existing(folder)
    locked, temporary = (folder.with_name(f".{folder.name}.{suffix}") for suffix in ("lock", "tmp"))
    made = [parent for parent in folder.absolute().parents if not parent.exists()]
    try:
        with hold(locked, f"{folder}: another conversion is writing it", patience=0):
            _refuse_existing(folder)
            shutil.rmtree(temporary, ignore_errors=True)
            try:
                temporary.mkdir()
                yield temporary
                sync(temporary)
                temporary.rename(folder)
                sync(folder.parent)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise disk_error(folder, error) from error
    except UserError as error:
        # Names that the user knows.
        raise UserError(str(error).replace(str(temporary), str(folder)).replace(str(locked), str(folder))) from None
    finally:
        if not folder.exists():
            with contextlib.suppress(OSError):  # somebody else has put something there
                for parent in made:
                    parent.rmdir()


def check_free_space(folder: Path, needed: int) -> None:
    """Raises UserError where the disk of `folder` has less than `needed` bytes free."""
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UserError(
            f"{folder}: {amount(needed)} are needed, but {amount(free)} are free; free some, or choose another disk"
        )


def _refuse_existing(folder: Path) -> None:
    if folder.exists() or folder.is_symlink():
        raise UserError(f"{folder}: exists already; name a new folder, or remove this one first")

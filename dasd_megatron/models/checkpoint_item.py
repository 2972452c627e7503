"""Whether an item of a distributed checkpoint, a piece of a tensor or an object, is as torch.save wrote it."""

from __future__ import annotations

import io
import zipfile
from typing import Protocol

from dasd_megatron.utils.errors import UserError

READ = 1 << 20  # bytes at a time


class _File(Protocol):
    def seek(self, offset: int, /) -> object:
        """Of a file, or of one that is mapped."""

    def read(self, size: int, /) -> bytes:
        """Bytes from there on."""


def check_item(file: _File, offset: int, length: int, name: str) -> None:
    """Reads an item of a file, which is called `name`, and compares each record's checksum (CRC-32).

    torch.save writes these unless it's told not to, and torch.load doesn't look at them. Raises UserError where one is another.
    """
    try:
        with zipfile.ZipFile(io.BufferedReader(_Part(file, offset, length))) as archive:
            for record in filter(lambda record: record.CRC, archive.infolist()):
                with archive.open(record) as content:
                    while content.read(READ):
                        pass
    except Exception as error:  # a damaged zip raises anything
        raise UserError(f"{name}: damaged: {error}") from None


class _Part(io.RawIOBase):
    """A part of a file, as a file."""

    def __init__(self, file: _File, offset: int, length: int) -> None:
        self._file, self._offset, self._length, self._position = file, offset, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        self._file.seek(self._offset + self._position)
        content = self._file.read(max(0, min(len(buffer), self._length - self._position)))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)

"""How far a step that samples is, in tokens: from its whole shards, and from what its processes say of those they are at."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow.compute as pc

from dasd_megatron.artifacts.artifact import shard_name
from dasd_megatron.artifacts.shard_file import open_shard_file
from dasd_megatron.artifacts.writer import ArtifactWriter
from dasd_megatron.steps.step import Standing
from dasd_megatron.utils.files import write_json
from dasd_megatron.utils.repeating import repeating

# Seconds between what a process says, and after how many without a word it counts as dead.
INTERVAL, DEAD = 2.0, 60.0


@dataclass(frozen=True)
class OpenWork:
    """What a process is at.

    Attributes:
        shards: that it has open.
        responses: that these ask for, and `finished` of them.
        tokens: of those that are finished.
        in_flight: tokens of those that aren't, so far.
    """

    shards: int
    responses: int
    finished: int
    tokens: int
    in_flight: int


@contextlib.contextmanager
def reported(journals: Path, standing: Callable[[], OpenWork]) -> Iterator[None]:
    """Tells, in a file in that folder, what this process is at, from a thread, every few seconds."""
    path = journals / f"status.{socket.gethostname()}.{os.getpid()}.json"

    def report() -> None:
        with contextlib.suppress(Exception):  # progress is no reason to stop
            write_json(path, asdict(standing()))

    try:
        with repeating(report, INTERVAL, "sampling progress"):
            yield
    finally:
        path.unlink(missing_ok=True)


class SamplingWatch:
    """Looks how far all processes of a step together are."""

    def __init__(self, output: ArtifactWriter, table: str, shards: int) -> None:
        self._output, self._table, self._shards = output, table, shards
        self._counted: set[int] = set()
        # Of whole shards.
        self._responses, self._tokens = 0, 0

    def __call__(self) -> Standing:
        """Tokens so far, and about how many there will be."""
        self._count_shards()
        works = list(self._open_work())
        opened, asked = sum(work.shards for work in works), sum(work.responses for work in works)
        finished, tokens = sum(work.finished for work in works), sum(work.tokens for work in works)
        done = self._tokens + tokens + sum(work.in_flight for work in works)
        # Whole shards have long responses as often as they come; of open ones the short ones end first.
        responses, length = self._responses, self._tokens / self._responses if self._responses else 0.0
        if not responses and finished:
            length = tokens / finished
        known = len(self._counted) + opened
        if not known or not length:
            return Standing(done, None)
        total = (responses + asked) / known * self._shards
        note = f"({responses + finished:,} of {total:,.0f} responses)"
        return Standing(done, max(done, round(total * length)), note)

    def _count_shards(self) -> None:
        for shard in self._output.shard_numbers(self._table) - self._counted:
            with open_shard_file(self._output.path / shard_name(self._table, shard)) as file:
                column = file.read(["tokens"])["tokens"]
            self._responses += len(column)
            self._tokens += pc.sum(column).as_py() or 0
            self._counted.add(shard)

    def _open_work(self) -> Iterator[OpenWork]:
        for path in self._output.journals.glob("status.*.json"):
            with contextlib.suppress(OSError, ValueError, TypeError):  # removed, or half written
                if time.time() - path.stat().st_mtime < DEAD:
                    yield OpenWork(**json.loads(path.read_text()))

"""How far a step that samples is, in tokens: from its whole shards, and from what its processes say of those they are at."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow.compute as pc

from dasd_megatron.artifacts.artifact import shard_name
from dasd_megatron.artifacts.shard_file import open_shard_file
from dasd_megatron.artifacts.writer import ArtifactWriter
from dasd_megatron.steps.step import Standing
from dasd_megatron.utils.child_process import start_of_process
from dasd_megatron.utils.files import write_json
from dasd_megatron.utils.repeating import repeating

# Seconds between what a process says, and after how many without a word it counts as dead.
INTERVAL, DEAD = 2.0, 60.0


@dataclass(frozen=True)
class OpenWork:
    """What a process is at.

    Attributes:
        shards: of each that it has open, by its number: responses that it asks for, how many are finished, and their tokens.
        in_flight: tokens of those that aren't, so far.
    """

    shards: Mapping[int, tuple[int, int, int]]
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
        works = self._open_work()
        opened = {
            shard: counts for work in works for shard, counts in work.shards.items() if shard not in self._counted
        }
        asked, finished, tokens = (sum(counts[n] for counts in opened.values()) for n in range(3))
        done = self._tokens + tokens + sum(work.in_flight for work in works)
        # Whole shards have long responses as often as they come; of open ones the short ones end first.
        responses, length = self._responses, self._tokens / self._responses if self._responses else 0.0
        if not responses and finished:
            length = tokens / finished
        known = len(self._counted) + len(opened)
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

    def _open_work(self) -> list[OpenWork]:
        """What living processes say, the last to say it last."""
        found = []
        for path in self._output.journals.glob("status.*.json"):
            with contextlib.suppress(OSError, ValueError, TypeError):  # removed, or half written
                said, age = json.loads(path.read_text()), time.time() - path.stat().st_mtime
                here = path.name.startswith(f"status.{socket.gethostname()}.")
                if age < DEAD and not (here and start_of_process(int(path.name.split(".")[-2])) is None):
                    shards = {int(shard): tuple(counts) for shard, counts in said["shards"].items()}
                    found.append((-age, OpenWork(shards, said["in_flight"])))
        return [work for _, work in sorted(found, key=lambda item: item[0])]

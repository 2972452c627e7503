"""The responses that each stage was trained on, as Parquet in the schema in which the paper's authors released theirs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from dasd_megatron.artifacts.shard_file import ShardFileWriter
from dasd_megatron.release.finished_run import Stage
from dasd_megatron.utils.files import AtomicFile
from dasd_megatron.utils.progress import Progress

# One row a response. `meta` says of which prompt and how; `answer` is the reference answer of the problem.
DATA = pa.schema(
    [
        ("uuid", pa.string()),
        ("input", pa.string()),
        ("output", pa.string()),
        ("domain", pa.string()),
        ("answer", pa.string()),
        (
            "meta",
            pa.struct(
                [
                    ("training_stage", pa.string()),
                    ("prompt_uuid", pa.string()),
                    ("sampling_temperature", pa.float32()),
                    ("student_bytes", pa.int32()),  # how many of the output's first bytes the student wrote
                ]
            ),
        ),
    ]
)
# The teacher's tokens of a response, without what the student wrote, and their log-probabilities at T=1.
LOGPROBS = pa.schema(
    [("sample_uuid", pa.string()), ("token_ids", pa.list_(pa.int32())), ("logprobs", pa.list_(pa.float32()))]
)
# Of a file's rows in memory. Hubs like files of hundreds of megabytes; these compress to about that.
MAX_FILE_BYTES = 1 << 30
SEEN = ["uuid", "sample_index", "input", "domain", "answer", "temperature", "text"]


@dataclass(frozen=True)
class StageFiles:
    """What was written of a stage."""

    responses: int
    tokens: int
    has_logprobs: bool


def write_stage(stage: Stage, folder: Path) -> StageFiles:
    """Writes data/STAGE/train-*.parquet and, where the teacher's log-probabilities are known, logprobs/STAGE/train-*.parquet."""
    has_logprobs = "logprobs" in stage.data.columns("responses")
    columns = [*SEEN, "token_ids", "tokens", *(["logprobs"] if has_logprobs else [])]
    if stage.kind == "mixed_policy":
        columns.append("prefix_bytes")
    total, tokens, done = stage.data.row_count("responses"), 0, 0
    texts = _RollingFiles(folder / "data" / stage.name, DATA)
    numbers = _RollingFiles(folder / "logprobs" / stage.name, LOGPROBS) if has_logprobs else None
    with Progress(f"data of {stage.name}", total, "responses") as progress:
        for batch in _batches(stage, columns):
            texts.write(_texts(batch, stage))
            if numbers is not None:
                numbers.write(pa.table([_ids(batch), batch["token_ids"], batch["logprobs"]], LOGPROBS))
            tokens += sum(batch["tokens"].to_pylist())
            done += len(batch)
            progress.update(done)
    texts.close()
    if numbers is not None:
        numbers.close()
    return StageFiles(done, tokens, has_logprobs)


def _batches(stage: Stage, columns: list[str]) -> Iterator[pa.Table]:
    return (batch for batch in stage.data.batches("responses", columns) if len(batch))


def _ids(batch: pa.Table) -> pa.Array:
    pairs = zip(batch["uuid"].to_pylist(), batch["sample_index"].to_pylist(), strict=True)
    return pa.array([f"{uuid}-{index}" for uuid, index in pairs], pa.string())


def _texts(batch: pa.Table, stage: Stage) -> pa.Table:
    prefixes = batch["prefix_bytes"].to_pylist() if stage.kind == "mixed_policy" else [0] * len(batch)
    if stage.kind == "turns":
        prefixes = [None] * len(batch)  # both wrote, by turns
    told = zip(batch["uuid"].to_pylist(), batch["temperature"].to_pylist(), prefixes, strict=True)
    meta = [
        {
            "training_stage": stage.name,
            "prompt_uuid": uuid,
            "sampling_temperature": temperature,
            "student_bytes": prefix,
        }
        for uuid, temperature, prefix in told
    ]
    columns = [batch[name].combine_chunks() for name in ("input", "text", "domain", "answer")]
    return pa.table([_ids(batch), *columns, pa.array(meta, DATA.field("meta").type)], DATA)


class _RollingFiles:
    """Parquet files train-00000.parquet, ..., in a folder, each of about MAX_FILE_BYTES rows."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        self._folder, self._schema = folder, schema
        self._number, self._bytes = 0, 0
        self._open()

    def _open(self) -> None:
        self._file = AtomicFile(self._folder / f"train-{self._number:05d}.parquet")
        self._writer = ShardFileWriter(self._file.file, self._schema)
        self._bytes = 0

    def write(self, rows: pa.Table) -> None:
        """Appends rows."""
        if self._bytes > MAX_FILE_BYTES:
            self.close()
            self._number += 1
            self._open()
        self._writer.write(rows)
        self._bytes += rows.nbytes

    def close(self) -> None:
        """Ends the last file."""
        self._writer.close()
        self._file.commit()

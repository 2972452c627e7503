"""Responses as a reasoning teacher would write them: of the paper's lengths, in gpt-oss's tokens, with made-up log-probabilities.

Text is that of the files of installed Python packages (code and documentation) and generated arithmetic, in random order, so
that it is varied, and costs what real text costs to tokenize. No model is involved.
"""

from __future__ import annotations

import sysconfig
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.paper_lengths import MAX_TOKENS, paper_lengths
from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.artifacts.columns import numpy_rows
from dasd_megatron.artifacts.writer import ArtifactWriter
from dasd_megatron.sampling.prompts import PROMPTS
from dasd_megatron.sampling.response_prompts import ROWS
from dasd_megatron.sampling.responses import RESPONSES
from dasd_megatron.sampling.score import MAX_RANK, SCORES
from dasd_megatron.tokenization.response_format import Harmony
from dasd_megatron.tokenization.tokenizer import ChatTokenizer

# Columns as the paper's authors have them.
RELEASED = {
    "uuid": pa.string(),
    "input": pa.string(),
    "output": pa.string(),
    "sample_uuid": pa.string(),
    "token_ids": pa.list_(pa.int64()),
    "logprobs": pa.list_(pa.float64()),
}
# Pieces of text of each kind, and characters of a piece.
PIECES, PIECE_CHARS = 1500, 900
# Of a step of a calculation: all in one would be a loop.
FORMS = (
    "So $x_{{{n}}} = {a} + {b} = {c}$, as {b} comes next.\n",
    "Adding {b} to {a} gives {c}.\n",
    "{a} + {b}: that is {c}, and it goes on from there.\n",
    "Next is $x_{{{n}}}$. It is {b} more than {a}, hence {c}.\n",
    "Check: {c} - {b} = {a}. Good.\n",
    "The sum of the first {n} is {c}; before the last it was {a}.\n",
)


class ResponseMaker:
    """Makes responses; the same seed gives the same ones."""

    def __init__(self, teacher: ChatTokenizer, seed: int) -> None:
        self._teacher, self._random = teacher, np.random.default_rng(seed)
        texts = [
            *installed_texts("*.py"),
            *installed_texts("*.rst", "*.md", "*.txt", "METADATA"),
            *_arithmetic(self._random),
        ]
        self._pieces = [ids for ids, _ in teacher.encode_with_spans(texts)]

    def table(self, prompts: int, candidates: int, first: int = 0) -> pa.Table:
        """Responses of consecutive prompts (schema RESPONSES)."""
        rows = []
        for prompt in range(first, first + prompts):
            question = f"Question {prompt}: what follows from {self._random.integers(10**6)}?"
            prompt_ids = self._teacher.prompt_ids(question)
            for index, length in enumerate(paper_lengths(self._random, candidates)):
                ids = self._response(int(length))
                rows.append(
                    {
                        "uuid": f"prompt-{prompt}",
                        "sample_index": index,
                        "input": question,
                        "domain": ("math", "code", "science")[prompt % 3],
                        "temperature": 1.0,
                        "prompt_ids": prompt_ids,
                        "prefix_ids": [],
                        "token_ids": ids,
                        "logprobs": self.logprobs(len(ids)),
                        "tokens": len(ids),
                        "finish_reason": "stop",
                        "max_tokens": MAX_TOKENS,
                        "text": self._teacher.decode_bytes(ids).decode(errors="replace"),
                    }
                )
        return pa.Table.from_pylist(rows, RESPONSES)

    def logprobs(self, count: int) -> NDArray[np.float32]:
        """Half of all tokens almost certain, the others of exponentially distributed log-probability."""
        values = -self._random.exponential(0.6, count) * np.where(self._random.random(count) > 0.5, 1.0, 1e-4)
        return np.asarray(values, np.float32)

    def _response(self, length: int) -> NDArray[np.int32]:
        body: list[NDArray[np.int32]] = []
        made = 0
        while made < length:
            body.append(self._pieces[self._random.integers(len(self._pieces))])
            made += len(body[-1])
        thinking = np.concatenate(body)[:length]
        opening = self._teacher.encode("<|channel|>analysis<|message|>")
        closing = self._teacher.encode(
            "<|end|><|start|>assistant<|channel|>final<|message|>The answer is 42.<|return|>"
        )
        return np.concatenate([opening, thinking, closing]).astype(np.int32)


def write_sampled(
    writer: ArtifactWriter, maker: ResponseMaker, shards: Iterable[int], prompts: int, candidates: int
) -> None:
    """Shards of an artifact `sample`, of so many prompts each."""
    batch = max(1, 64 // candidates)
    for shard in shards:
        with writer.shard(shard, "responses") as file:
            for start in range(0, prompts, batch):
                table = maker.table(min(batch, prompts - start), candidates, shard * prompts + start)
                file.write({"responses": table})


def write_released(folder: Path, sampled: Artifact, teacher: ChatTokenizer) -> None:
    """The same responses as the paper's authors released theirs, `texts.parquet` and `logprobs.parquet`, and the artifact
    `prompts` that names them. Ids begin with the reasoning."""
    form = Harmony(teacher)
    skipped, prompts, rows = len(form.opening_ids), dict[str, dict[str, str]](), list[dict[str, int]]()
    names = (("texts", ["uuid", "input", "output"]), ("logprobs", ["sample_uuid", "token_ids", "logprobs"]))
    schemas = [pa.schema([(name, RELEASED[name]) for name in columns]) for _, columns in names]
    files = [
        pq.ParquetWriter(folder / f"{name}.parquet", schema) for (name, _), schema in zip(names, schemas, strict=True)
    ]
    for batch in sampled.batches("responses", ["uuid", "input", "prompt_ids", "token_ids", "logprobs"]):
        texts, logprobs = [], []
        for row in numpy_rows(batch):
            uuid = str(len(rows))
            output = form.parse(row["prompt_ids"], [], row["token_ids"], stopped=True).text
            texts.append({"uuid": uuid, "input": row["input"], "output": output})
            ids, probabilities = row["token_ids"][skipped:], row["logprobs"][skipped:]
            logprobs.append({"sample_uuid": uuid, "token_ids": ids, "logprobs": probabilities})
            prompts.setdefault(row["uuid"], {"uuid": row["uuid"], "input": row["input"]})
            rows.append({"prompt": len(prompts) - 1, "text_row": len(rows), "logprobs_row": len(rows)})
        for file, content, schema in zip(files, (texts, logprobs), schemas, strict=True):
            file.write_table(pa.Table.from_pylist(content, schema))
    for file in files:
        file.close()
    writer = ArtifactWriter(folder / "prompts", {})
    writer.write_shard("rows", 0, pa.Table.from_pylist(rows, ROWS))
    writer.write_shard("prompts", 0, pa.Table.from_pylist(list(prompts.values()), PROMPTS))
    writer.finish(counts={"prompts": len(prompts), "responses": len(rows)})


def write_scored(writer: ArtifactWriter, filtered: Artifact) -> None:
    """An artifact `score` of a filtered one, log-probabilities made up, ranks as they would have at most."""
    for shard in range(len(filtered.shards("responses"))):
        random = np.random.default_rng(shard)
        with writer.shard(shard, "responses") as file:
            for batch in filtered.batches("responses", ["student_tokens"], shard):
                rows = []
                for count in batch["student_tokens"].to_pylist():
                    logprobs = -random.exponential(0.8, count)
                    ranks = np.exp(-logprobs).clip(1, MAX_RANK).astype(np.uint8)
                    rows.append({"student_logprobs": logprobs.astype(np.float32), "student_ranks": ranks})
                file.write({"responses": pa.Table.from_pylist(rows, SCORES)})
    writer.finish(counts={}, extends={"responses": filtered.path.name})


def installed_texts(*patterns: str) -> list[str]:
    """Pieces of files of this environment's packages, as many as there are up to PIECES, spread over all of them."""
    folder = Path(sysconfig.get_path("purelib"))
    paths = sorted(path for pattern in patterns for path in folder.glob(f"*/**/{pattern}"))
    pieces: list[str] = []
    for path in paths[:: max(1, len(paths) // PIECES)]:
        content = path.read_text(errors="ignore")
        if len(content) > 2 * PIECE_CHARS:
            start = content.find("\n", len(content) // 3) + 1
            pieces.append(content[start : start + PIECE_CHARS] + "\n")
    return pieces[:PIECES]


def _arithmetic(random: np.random.Generator) -> list[str]:
    """Steps of a calculation with numbers of many digits."""
    pieces: list[str] = []
    for _ in range(PIECES // 2):
        lines: list[str] = []
        total = int(random.integers(10**6))
        while sum(map(len, lines)) < PIECE_CHARS:
            other = int(random.integers(10**4))
            form = FORMS[random.integers(len(FORMS))]
            lines.append(form.format(n=len(lines), a=total, b=other, c=total + other))
            total += other
        pieces.append("".join(lines))
    return pieces

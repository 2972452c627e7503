"""Responses that exist already: `stages.*.responses`."""

from __future__ import annotations

from typing import Literal

from dasd_megatron.config.base import Config, Positive
from dasd_megatron.config.prompts import Grader
from dasd_megatron.config.sources import DataSource


class ResponseColumns(Config):
    """Names of the columns. The defaults are those of the data that the paper's authors released."""

    uuid: str | None = "uuid"
    """Identifies a response, for `logprobs`; null where each row has its own."""

    input: str = "input"
    """The problem. Responses to the same problem are each other's alternatives."""

    output: str | None = "output"
    """The response as text, `<think>reasoning</think>answer`: what the token ids must spell. null: it isn't known."""

    domain: str | None = "domain"
    """Of the problem, for budgets and figures; null, or absent from the rows: none."""

    answer: str | None = "answer"
    """The problem's reference answer; null, or absent from the rows: none."""

    token_ids: str = "token_ids"
    """The response in the teacher's tokens. Markup that isn't among them (gpt-oss's channels, `<think>`, the end of the turn) is
    added, with a log-probability of 0; of it, the selection counts the end of the turn alone, as a certain token."""

    logprobs: str = "logprobs"
    """Natural log-probability of each of them, at T=1."""


class LogprobColumns(Config):
    """Names of the columns. The defaults are those of the paper's authors."""

    uuid: str = "sample_uuid"
    """That of the response."""

    token_ids: str = "token_ids"
    """The response in the teacher's tokens."""

    logprobs: str = "logprobs"
    """Natural log-probability of each of them, at T=1."""


class LogprobSource(DataSource):
    """Token ids and log-probabilities of responses, in rows of their own."""

    columns: LogprobColumns = LogprobColumns()
    """What its columns are called."""


class ResponseSource(DataSource):
    """Responses of the teacher that exist already: a JSONL or Parquet file, or a data set of the `datasets` library.

    Nothing is sampled then, and the teacher isn't run: of its folder, the tokenizer and chat template are enough.
    """

    columns: ResponseColumns = ResponseColumns()
    """What its columns are called."""

    logprobs: LogprobSource | None = None
    """Where token ids and log-probabilities are, if they aren't in the same rows."""

    grader: Grader = "math"
    """How the column `answer` is graded, as `prompts.train.grader`."""

    limit: Positive | None = None
    """The first rows, this number of them; all of them by default."""

    bad_rows: Literal["error", "drop"] = "error"
    """A row that is malformed, repeats a uuid, has no log-probabilities, or ids beyond the vocabulary: stop and name it, or drop
    it and count it. Rows whose ids and text differ are always dropped and counted."""

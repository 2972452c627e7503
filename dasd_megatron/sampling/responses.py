"""Tables of sampled responses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from dasd_megatron.artifacts.columns import list_array
from dasd_megatron.artifacts.writer import ArtifactWriter
from dasd_megatron.sampling.engines.engine import Request, Sample
from dasd_megatron.tokenization.tokenizer import ChatTokenizer

# The columns of every sampled response. Ids and log-probabilities are the truth; text is for people (`filter` parses the ids).
RESPONSES = pa.schema(
    [
        ("uuid", pa.string()),
        ("sample_index", pa.int32()),
        ("input", pa.string()),
        ("domain", pa.string()),
        ("answer", pa.string()),
        ("temperature", pa.float32()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("prefix_ids", pa.list_(pa.int32())),  # of a response begun by another model; else empty
        ("token_ids", pa.list_(pa.int32())),
        ("logprobs", pa.list_(pa.float32())),  # nats, at T=1
        ("tokens", pa.int32()),  # how many token_ids
        ("finish_reason", pa.string()),
        ("max_tokens", pa.int32()),  # the cap under which it was sampled
        ("text", pa.string()),
    ]
)


def response_table(
    rows: Sequence[Mapping[str, Any]], requests: Sequence[Request], samples: Sequence[Sample], tokenizer: ChatTokenizer
) -> pa.Table:
    """Sampled responses with what they answer; `rows` may give `prefix_ids`, which then are the end of the prompt sent."""
    content = []
    for row, request, sample in zip(rows, requests, samples, strict=True):
        prefix_ids = row.get("prefix_ids", [])
        prompt_ids = list(request.prompt_ids)
        content.append(
            {
                **row,
                "prompt_ids": prompt_ids[: len(prompt_ids) - len(prefix_ids)],
                "prefix_ids": prefix_ids,
                "tokens": len(sample.token_ids),
                "finish_reason": sample.finish_reason,
                "max_tokens": request.max_tokens,
                "text": tokenizer.decode_bytes(sample.token_ids).decode(errors="replace"),
            }
        )
    table = pa.Table.from_pylist(content, RESPONSES)
    for name in ("token_ids", "logprobs"):
        column = list_array([getattr(sample, name) for sample in samples], RESPONSES.field(name).type.value_type)
        table = table.set_column(RESPONSES.get_field_index(name), name, column)
    return table


def count_responses(output: ArtifactWriter, table: str) -> dict[str, Any]:
    """Responses, tokens and how they ended, from the shards on disk."""
    reasons: Counter[str] = Counter()
    tokens = 0
    for content in output.tables(table, ["finish_reason", "tokens"]):
        reasons.update(content["finish_reason"].to_pylist())
        tokens += pc.sum(content["tokens"]).as_py() or 0
    return {"counts": {"responses": reasons.total(), "tokens": tokens, "truncated": reasons["length"]}}

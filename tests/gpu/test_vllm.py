"""vLLM on a GPU: the toy's teacher writes what it writes in transformers. Runs where vLLM is installed: in the sampling image."""

from __future__ import annotations

import importlib.util
import json

import pytest

from tests.conftest import TOY

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM isn't installed")


def test_greedy_answers_are_those_of_transformers() -> None:
    from dasd_megatron.config.sampling import EngineConfig
    from dasd_megatron.sampling.engines.engine import Request, generate_all
    from dasd_megatron.sampling.engines.registry import load_engine
    from dasd_megatron.tokenization.tokenizer import ChatTokenizer

    tokenizer = ChatTokenizer(TOY / "teacher")
    texts = [json.loads(line)["input"] for line in (TOY / "validation.jsonl").read_text().splitlines()[:50]]
    requests = [Request(tokenizer.prompt_ids(text), 0, 64, 0.0, 1.0, tokenizer.stop_ids) for text in texts]
    answers = [
        [
            sample.token_ids.tolist()
            for sample in generate_all(load_engine(TOY / "teacher", EngineConfig(name=name, dtype="float32")), requests)
        ]
        for name in ("transformers", "vllm")
    ]
    assert answers[0] == answers[1]

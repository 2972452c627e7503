"""vLLM and the transformers reference: the same numbers, reproducible samples."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dasd_megatron.config.sampling import EngineConfig
from dasd_megatron.sampling.engines.engine import Engine, Request, Sample, generate_all
from dasd_megatron.sampling.engines.registry import load_engine
from dasd_megatron.sampling.seeds import sample_seed
from dasd_megatron.tokenization.tokenizer import ChatTokenizer
from dasd_megatron.utils.errors import UserError
from tests.conftest import TOY

PROBLEMS = [json.loads(line)["input"] for line in (TOY / "validation.jsonl").read_text().splitlines()[:64]]
# fp32: kernels sum in another order. Measured: 3e-5.
TOLERANCE = 1e-4


def settings(name: str) -> EngineConfig:
    return EngineConfig(name=name, dtype="float32", max_batch=64)


@pytest.fixture(scope="module", params=["teacher", "student"])
def folder(request: pytest.FixtureRequest) -> Path:
    return TOY / str(request.param)


@pytest.fixture(scope="module")
def engines(folder: Path) -> dict[str, Engine]:
    return {name: load_engine(folder, settings(name)) for name in ("vllm", "transformers")}


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> ChatTokenizer:
    return ChatTokenizer(folder)


def requests(
    tokenizer: ChatTokenizer, temperature: float = 0.0, max_tokens: int = 96, top_p: float = 1.0
) -> list[Request]:
    return [
        Request(
            tokenizer.prompt_ids(text), sample_seed("test", index), max_tokens, temperature, top_p, tokenizer.stop_ids
        )
        for index, text in enumerate(PROBLEMS)
    ]


def lists(samples: list[Sample]) -> list[tuple[list[int], list[float], str]]:
    return [(sample.token_ids.tolist(), sample.logprobs.tolist(), sample.finish_reason) for sample in samples]


def test_greedy_answers_and_logprobs_agree(engines: dict[str, Engine], tokenizer: ChatTokenizer) -> None:
    first, second = (generate_all(engines[name], requests(tokenizer)) for name in ("vllm", "transformers"))
    assert [sample.token_ids.tolist() for sample in first] == [sample.token_ids.tolist() for sample in second]
    assert [sample.finish_reason for sample in first] == [sample.finish_reason for sample in second]
    for one, other in zip(first, second, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["vllm", "transformers"])
def test_sampled_logprobs_are_the_models_at_temperature_one(
    engines: dict[str, Engine], tokenizer: ChatTokenizer, name: str
) -> None:
    """Whatever the temperature, each token's log-probability is what scoring the whole sequence at T=1 gives."""
    asked = requests(tokenizer, temperature=0.6)
    samples = generate_all(engines[name], asked)
    sequences = [[*request.prompt_ids, *sample.token_ids] for request, sample in zip(asked, samples, strict=True)]
    for scores in (engines["vllm"].score(sequences), engines["transformers"].score(sequences)):
        for sample, score in zip(samples, scores, strict=True):
            np.testing.assert_allclose(
                sample.logprobs, score.logprobs[-len(sample.token_ids) :], atol=TOLERANCE, rtol=0
            )


@pytest.mark.parametrize("name", ["vllm", "transformers"])
def test_a_seeded_sample_repeats(engines: dict[str, Engine], tokenizer: ChatTokenizer, name: str) -> None:
    first, second = (lists(generate_all(engines[name], requests(tokenizer, temperature=1.0))) for _ in range(2))
    assert first == second
    others = [replace(request, seed=request.seed + 1) for request in requests(tokenizer, temperature=1.0)]
    assert lists(generate_all(engines[name], others)) != first


def test_a_cached_prompt_and_the_batch_change_no_bit(engines: dict[str, Engine], tokenizer: ChatTokenizer) -> None:
    """vLLM in fp32 on a CPU: prompts of several blocks, computed first, then cached; together, then a few at a time."""
    asked = [
        replace(request, prompt_ids=(list(request.prompt_ids) * 40)[:300])
        for request in requests(tokenizer, temperature=1.0)[:24]
    ]
    first = lists(generate_all(engines["vllm"], asked))
    assert lists(generate_all(engines["vllm"], asked)) == first
    parts = [generate_all(engines["vllm"], asked[start : start + 5]) for start in range(0, len(asked), 5)]
    assert lists([sample for part in parts for sample in part]) == first


@pytest.mark.parametrize("name", ["vllm", "transformers"])
def test_a_truncated_response_says_so(engines: dict[str, Engine], tokenizer: ChatTokenizer, name: str) -> None:
    samples = generate_all(engines[name], requests(tokenizer, max_tokens=3))
    assert {sample.finish_reason for sample in samples} == {"length"}
    assert {len(sample.token_ids) for sample in samples} == {3}


@pytest.mark.parametrize("name", ["vllm", "transformers"])
def test_responses_end_where_the_models_positions_do(
    engines: dict[str, Engine], tokenizer: ChatTokenizer, name: str
) -> None:
    engine, prompt = engines[name], tokenizer.prompt_ids(PROBLEMS[0])
    long = [prompt[0]] * (engine.max_length - 3)
    whole = [prompt[0]] * engine.max_length
    usual_request = requests(tokenizer)[0]
    near, none, usual = generate_all(
        engine,
        [replace(usual_request, prompt_ids=long), replace(usual_request, prompt_ids=whole), usual_request],
    )
    assert len(near.token_ids) <= 3
    assert lists([none]) == [([], [], "length")]
    assert usual.finish_reason == "stop"


def test_temperature_and_top_p_shape_the_samples(engines: dict[str, Engine], tokenizer: ChatTokenizer) -> None:
    """The two engines draw from the same distribution: mean log-probabilities agree within sampling noise."""
    for temperature, top_p in ((1.0, 1.0), (0.6, 1.0), (1.0, 0.5)):
        asked = [
            replace(request, seed=request.seed + draw)
            for draw in range(8)
            for request in requests(tokenizer, temperature, top_p=top_p)
        ]
        means, errors = [], []
        for name in ("vllm", "transformers"):
            samples = generate_all(engines[name], asked)
            sums = [sum(sample.logprobs) for sample in samples]
            means.append(np.mean(sums))
            errors.append(np.std(sums) / np.sqrt(len(sums)))
        assert abs(means[0] - means[1]) < 4 * np.hypot(*errors) + 1e-3


def test_absent_weights(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((TOY / "student" / "config.json").read_text())
    with pytest.raises(UserError, match="the model can't be loaded"):
        load_engine(tmp_path, settings("transformers"))

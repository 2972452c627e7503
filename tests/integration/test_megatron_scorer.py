"""The engine `megatron`: the numbers of transformers and vLLM, in every layout; and what it says when something is wrong."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.config.load import load_recipe
from dasd_megatron.config.sampling import EngineConfig, MegatronScorerConfig
from dasd_megatron.config.training import ParallelConfig
from dasd_megatron.pipeline.graph import build_steps
from dasd_megatron.sampling.engines.engine import Request, TokenScores
from dasd_megatron.sampling.engines.megatron_engine import MegatronEngine
from dasd_megatron.sampling.engines.registry import load_engine
from dasd_megatron.utils.child_process import start_of_process
from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.registry import load_plugins
from tests.conftest import ROOT, TOY
from tests.helpers.layout_ranks import run_on_ranks
from tests.helpers.marks import mostly_full
from tests.helpers.small_run import SMALL, finish
from tests.helpers.tiny_models import VOCABULARY, tiny_model

# fp32: kernels sum in another order. Measured: 1e-6.
TOLERANCE = 1e-4
# Packs of 100 tokens: of several documents, of one that is longer, and of a last short one.
LENGTHS = (3, 40, 1, 7, 120, 2, 90, 33, 33, 64, 5, 12)
PACK_TOKENS = 100
CASES: dict[str, tuple[str, dict[str, int]]] = {
    "qwen3-tp2": ("qwen3", {"tensor": 2}),
    "qwen3-cp2": ("qwen3", {"context": 2}),
    "qwen3-pp2": ("qwen3", {"pipeline": 2}),
    "qwen3-tp2xcp2": ("qwen3", {"tensor": 2, "context": 2}),
    "qwen3_moe-tp2-ep2": ("qwen3_moe", {"tensor": 2, "expert": 2}),
    "qwen3_moe-cp2-ep2": ("qwen3_moe", {"context": 2, "expert": 2}),
    "gpt_oss-one": ("gpt_oss", {}),
    "gpt_oss-cp2": ("gpt_oss", {"context": 2}),
    "llama-tp2": ("llama", {"tensor": 2}),
    "qwen2-cp2": ("qwen2", {"context": 2}),
}


def documents(lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[list[int]]:
    random = np.random.default_rng(seed)
    return [random.integers(0, VOCABULARY, length).tolist() for length in lengths]


def scorer(folder: Path, tensor: int = 1, pack_tokens: int = PACK_TOKENS, **layout: int) -> MegatronEngine:
    megatron = MegatronScorerConfig(pack_tokens=pack_tokens, **layout)
    return MegatronEngine(
        folder, EngineConfig(name="megatron", dtype="float32", tensor_parallel=tensor, megatron=megatron)
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def folder(family: str) -> Path:
        if family not in made:
            made[family] = tiny_model(tmp_path_factory.mktemp(family), family, tied=family == "qwen2")
        return made[family]

    return folder


def reference(folder: Path, sequences: list[list[int]]) -> tuple[list[TokenScores], list[np.ndarray[Any, Any]]]:
    """What transformers' engine makes of sequences, and the least and the largest rank of each token that rounding allows."""
    from transformers import AutoModelForCausalLM

    reference_model = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32).eval()
    bounds = []
    for sequence in sequences:
        with torch.no_grad():
            logprobs = reference_model(input_ids=torch.tensor([sequence])).logits[0, :-1].log_softmax(-1)
        own = logprobs.gather(1, torch.tensor(sequence)[1:, None])
        least, largest = ((logprobs >= own + shift).sum(1) for shift in (TOLERANCE, -TOLERANCE))
        bounds.append(torch.stack([least + 1, largest]).numpy())
    engine = load_engine(folder, EngineConfig(name="transformers", dtype="float32"))
    return engine.score(sequences, brier=True), bounds


def assert_agree(found: list[TokenScores], expected: list[TokenScores], bounds: list[np.ndarray[Any, Any]]) -> None:
    for one, other, (least, largest) in zip(found, expected, bounds, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=TOLERANCE, rtol=0)
        assert (least <= one.ranks).all()
        assert (one.ranks <= largest).all()
        assert one.brier is not None
        assert other.brier is not None
        np.testing.assert_allclose(one.brier, other.brier, atol=TOLERANCE, rtol=0)
        assert (one.logprobs.dtype, one.ranks.dtype, one.brier.dtype) == (np.float32, np.int32, np.float32)


@pytest.mark.parity
@pytest.mark.parametrize("case", mostly_full(CASES, ("qwen3-tp2", "qwen3-cp2", "qwen3_moe-tp2-ep2", "gpt_oss-one")))
def test_agrees_with_transformers(model: Callable[[str], Path], case: str) -> None:
    family, layout = CASES[case]
    sequences = documents()
    engine = scorer(model(family), **layout)
    found = engine.score(sequences, brier=True)
    assert_agree(found, *reference(model(family), sequences))
    for one, other in zip(found, engine.score(sequences), strict=True):  # Brier scores change nothing else
        assert other.brier is None
        np.testing.assert_array_equal(one.logprobs, other.logprobs)
        np.testing.assert_array_equal(one.ranks, other.ranks)


def test_a_model_of_long_documents(tmp_path: Path) -> None:
    """As real ones are: above 4,096 tokens an attention that isn't fused is refused, which Megatron must not take amiss."""
    folder = tiny_model(tmp_path, max_position_embeddings=40_960)
    sequences = documents((5, 4200))
    found = scorer(folder).score(sequences, brier=True)
    assert_agree(found, *reference(folder, sequences))


@pytest.mark.parametrize("chunk_elements", [32 << 20, 4096])
@pytest.mark.parametrize(
    ("parallel", "vocabulary"),
    [(ParallelConfig(), 1031), (ParallelConfig(tensor=2, sequence=False), 1031), (ParallelConfig(tensor=2), 1)],
    ids=["tp1", "tp2", "tp2-sp-one-token"],
)
def test_scores_by_chunks_equal_those_of_all_logits(
    parallel: ParallelConfig, vocabulary: int, chunk_elements: int, tmp_path: Path
) -> None:
    """Ranks exactly, ties included. Of one token of vocabulary the second rank has none."""
    arguments = {"vocabulary": vocabulary, "chunk_elements": chunk_elements, "top": 50 if vocabulary > 1 else 1}
    for found in run_on_ranks("scores_of_tokens", parallel, tmp_path / "out", **arguments):
        assert found["logprobs"] < 1e-5
        assert found["ranks"] == 0
        assert found["brier"] < 1e-5


@pytest.fixture(scope="module")
def engine(model: Callable[[str], Path]) -> MegatronEngine:
    return scorer(model("qwen3"))


def test_documents_of_a_pack_dont_see_one_another(engine: MegatronEngine) -> None:
    first, second, third = documents((20, 30, 40))
    before = engine.score([first, second, third])
    after = engine.score([first, [(token + 1) % VOCABULARY for token in second], third])
    for number in (0, 2):
        np.testing.assert_array_equal(before[number].logprobs, after[number].logprobs)
    assert np.abs(before[1].logprobs - after[1].logprobs).max() > 0.1
    [alone] = engine.score([second])
    np.testing.assert_allclose(alone.logprobs, before[1].logprobs, atol=TOLERANCE, rtol=0)


def test_scores_come_in_the_order_of_the_sequences(engine: MegatronEngine) -> None:
    sequences = documents()
    order = np.random.default_rng(1).permutation(len(sequences))
    found, shuffled = engine.score(sequences), engine.score([sequences[number] for number in order])
    for number, scores in zip(order, shuffled, strict=True):
        np.testing.assert_allclose(scores.logprobs, found[number].logprobs, atol=TOLERANCE, rtol=0)


def test_nothing_to_score(engine: MegatronEngine) -> None:
    assert engine.score([]) == []
    empty, single, pair = engine.score([[], [3], [3, 4]], brier=True)
    assert [len(scores.logprobs) for scores in (empty, single, pair)] == [0, 0, 1]
    assert [len(scores.ranks) for scores in (empty, single, pair)] == [0, 0, 1]
    assert empty.brier is not None
    assert len(empty.brier) == 0


def test_its_length_is_the_models(engine: MegatronEngine, model: Callable[[str], Path]) -> None:
    assert engine.max_length == 512
    whole = documents((511,))
    assert_agree(engine.score(whole, brier=True), *reference(model("qwen3"), whole))


def test_agrees_with_vllm() -> None:
    """And with transformers, on the toy student and texts."""
    from dasd_megatron.tokenization.tokenizer import ChatTokenizer

    tokenizer = ChatTokenizer(TOY / "student")
    lines = [json.loads(line) for line in (TOY / "validation.jsonl").read_text().splitlines()[:40]]
    sequences = [[*tokenizer.prompt_ids(line["input"]), *tokenizer.encode(line["input"] * 3)] for line in lines]
    vllm = load_engine(TOY / "student", EngineConfig(name="vllm", dtype="float32", max_batch=64))
    bounds = reference(TOY / "student", sequences)[1]
    assert_agree(scorer(TOY / "student").score(sequences, True), vllm.score(sequences, True), bounds)


def test_it_only_scores(engine: MegatronEngine) -> None:
    with pytest.raises(UserError, match=r"the engine megatron only scores; set it as engine\.scorer\.name"):
        engine.generate([Request([1], 0, 1, 1.0, 1.0, [])])


def test_models_and_layouts_that_cant_be(model: Callable[[str], Path], tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"tensor=3 doesn't divide the 4 .* that work: engine\.scorer\.megatron\.context=3"
    ):
        scorer(model("qwen3"), tensor=3)
    with pytest.raises(UserError, match="expert=2 needs a mixture of experts"):
        scorer(model("qwen3"), expert=2)
    folder = tmp_path / "model"
    folder.mkdir()
    config = json.loads((model("qwen3") / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"no model\.safetensors"):
        scorer(folder)
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["OtherForCausalLM"]}))
    with pytest.raises(UserError, match="the architecture OtherForCausalLM isn't supported"):
        scorer(folder)


def test_a_family_from_a_plugin(model: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plugged_family.py").write_text(
        "from dataclasses import replace\n"
        "from dasd_megatron.models.families.qwen3 import QWEN3\n"
        "from dasd_megatron.models.families.registry import FAMILIES\n"
        "FAMILIES.register('PluggedForCausalLM')(replace(QWEN3, architecture='PluggedForCausalLM'))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setattr("dasd_megatron.utils.registry._loaded_plugins", [])
    load_plugins(["plugged_family"], "here")
    folder = shutil.copytree(model("qwen3"), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["PluggedForCausalLM"]}))
    [ours], [expected] = scorer(folder).score(documents((9,))), scorer(model("qwen3")).score(documents((9,)))
    np.testing.assert_array_equal(ours.logprobs, expected.logprobs)


def test_a_rank_that_is_killed_ends_the_others(model: Callable[[str], Path]) -> None:
    engine = scorer(model("qwen3"), context=2)
    first, second = (rank._process for rank in engine._ranks._ranks)
    second.kill()
    with pytest.raises(
        UserError, match=r"rank 1 of the scorer ended \(exit code -9\); where memory ran out, raise engine"
    ):
        engine.score(documents())
    assert first.poll() is not None


def test_ranks_end_with_the_engines_process(model: Callable[[str], Path]) -> None:
    program = (
        "import os, sys; from pathlib import Path\n"
        "from tests.integration.test_megatron_scorer import scorer\n"
        "engine = scorer(Path(sys.argv[1]))\n"
        "print(engine._ranks._ranks[0]._process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", program, str(model("qwen3"))]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 10
    while start_of_process(int(done.stdout)) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.full
def test_the_step_selects_as_with_vllm(tmp_path: Path) -> None:
    common = [*SMALL, "prompts.train.limit=16", "launch.replicas=1", f"run_dir={tmp_path / 'run'}"]
    scorers = {
        "megatron": ["engine.scorer={name: megatron, tensor_parallel: 2}"],
        "vllm": ["engine.scorer={name: vllm}"],
    }
    os.chdir(ROOT)
    chosen = {}
    for name, overrides in scorers.items():
        arguments = [str(TOY / "recipe.yaml"), *common, *overrides]
        before = (
            []
            if chosen
            else ["benchmark_arithmetic", "prompts_train", "sample_low_temperature", "filter_low_temperature"]
        )
        for step in (*before, "score_low_temperature", "select_low_temperature"):
            code, _, errors = finish(*arguments, "--only", step)
            assert code == 0, errors[-3000:]
        steps = build_steps(load_recipe(TOY / "recipe.yaml", [*common, *overrides]))
        scored = Artifact(steps["score_low_temperature"].folder).rows(
            "responses", ["student_logprobs", "student_ranks"]
        )
        rows = Artifact(steps["select_low_temperature"].folder).rows("responses", ["uuid", "sample_index"])
        chosen[name] = list(scored), list(rows)
    assert chosen["megatron"][1] == chosen["vllm"][1]
    assert chosen["megatron"][1]
    for one, other in zip(chosen["megatron"][0], chosen["vllm"][0], strict=True):
        np.testing.assert_allclose(one["student_logprobs"], other["student_logprobs"], atol=TOLERANCE, rtol=0)


@pytest.mark.full
def test_a_document_of_32k_tokens_takes_less_than_4_gib() -> None:
    """With a vocabulary of 151,936, whose logits would take 18.5 GiB."""
    command = [sys.executable, "-m", "benchmarks.scoring", "--engines", "--long", "32768"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["long"]["peak_gib"] < 4

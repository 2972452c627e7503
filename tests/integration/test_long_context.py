"""Documents stay apart in every layout, and long contexts fit: the fused loss, 32K-token packs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from conversion.convert import import_hf
from dasd_megatron.artifacts.writer import ArtifactWriter
from dasd_megatron.config.training import ParallelConfig
from dasd_megatron.curation.packing import PACKS
from tests.conftest import ROOT
from tests.helpers.layout_ranks import run_on_ranks
from tests.helpers.marks import mostly_full
from tests.helpers.tiny_models import VOCABULARY, tiny_model
from tests.helpers.training_runs import Runs

ISOLATION_LAYOUTS = {
    "one": ParallelConfig(),
    "pp2": ParallelConfig(pipeline=2),
    "pp2-interleaved": ParallelConfig(pipeline=2, virtual_pipeline=2),
    "cp2": ParallelConfig(context=2),
    "tp2": ParallelConfig(tensor=2),
}
LONG = 32_768


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("isolation")
    tiny_model(folder / "hf")
    import_hf(folder / "hf", folder / "checkpoint")
    return folder


@pytest.mark.parametrize("isolate", [True, False])
@pytest.mark.parametrize("name", mostly_full(ISOLATION_LAYOUTS, ("one", "cp2")))
def test_documents_are_isolated(model: Path, tmp_path: Path, name: str, isolate: bool) -> None:
    """Changing one document changes no other's logits, to the bit; with isolation off the probe sees the difference."""
    changes = run_on_ranks(
        "isolation",
        ISOLATION_LAYOUTS[name],
        tmp_path / "out",
        model=str(model / "hf"),
        checkpoint=str(model / "checkpoint"),
        lengths=[9, 40, 3, 17, 1, 60],
        isolate=isolate,
    )
    assert max(change["own"] for change in changes) > 0.1
    assert (max(change["others"] for change in changes) == 0) is isolate


@pytest.mark.parametrize("tile_elements", [32 << 20, 4096])
@pytest.mark.parametrize(
    "parallel",
    [ParallelConfig(), ParallelConfig(tensor=2, sequence=False), ParallelConfig(tensor=2)],
    ids=["tp1", "tp2", "tp2-sp"],
)
def test_fused_loss_equals_eager(parallel: ParallelConfig, tile_elements: int, tmp_path: Path) -> None:
    """In one tile and in several; the vocabulary divides by no tensor-parallel size, so rows are padded."""
    for found in run_on_ranks("fused_loss", parallel, tmp_path / "out", vocabulary=1031, tile_elements=tile_elements):
        assert found["loss"] < 1e-6
        assert found["hidden"] < 1e-6
        assert found["weight"] < 1e-6


@pytest.mark.full
def test_fused_loss_is_lean_at_32k_tokens() -> None:
    """151,936 tokens of vocabulary: logits would take 18.5 GiB, and as much again for their gradient."""
    done = subprocess.run(
        [sys.executable, "benchmarks/fused_loss.py", "--tokens", str(LONG), "--hidden", "32"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found["loss"] > 1
    assert found["extra_gib"] < 1.5


def long_packs(folder: Path) -> Path:
    """One document that fills the pack, and a pack of a long one and shorter ones."""
    random = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for lengths in ([LONG], [20_001, 9_000, 2_500, 700, 300, 200]):
        rows.append(
            {
                "input_ids": random.integers(0, VOCABULARY, sum(lengths)),
                "loss_mask": random.random(sum(lengths)) < 0.9,
                "document_lengths": lengths,
                "uuids": [f"d{n}" for n in range(len(lengths))],
            }
        )
    writer = ArtifactWriter(folder, {})
    writer.write_shard("packs", 0, pa.Table.from_pylist(rows, PACKS))
    writer.finish(context_length=LONG)
    return folder


@pytest.mark.full
def test_32k_token_packs_train_in_little_memory(tmp_path: Path) -> None:
    """Two steps of one pack each, as one process and with every document split over two."""
    runs = Runs(
        tmp_path,
        packs=long_packs(tmp_path / "packs"),
        num_hidden_layers=2,
        hidden_size=64,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=LONG,
    )
    both = []
    for name, parallel in (("cp1", ParallelConfig()), ("cp2", ParallelConfig(context=2))):
        run = runs.run(name, parallel, steps=2, global_batch=1)
        run.finish()
        both.append(run.numbers())
    for one, two in zip(*both, strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)
        assert one["memory_gib"] < 6
        assert two["memory_gib"] < 6

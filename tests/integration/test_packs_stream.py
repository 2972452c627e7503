"""A rank's memory doesn't grow with the packs that it trains on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dasd_megatron.artifacts.writer import ArtifactWriter
from dasd_megatron.curation.packing import PACKS
from tests.conftest import ROOT

TOKENS = 65_536
READ = """
import sys
from pathlib import Path
from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.training.data import PackDataset
from dasd_megatron.training.device_stats import peak_resident_bytes
packs = PackDataset(Artifact(Path(sys.argv[1])), 0, True)
read = [packs.pack(sample) for sample in range(3)]
before = peak_resident_bytes()
tokens = sum(len(packs.pack(sample).ids) for sample in range(len(packs) - 200, len(packs)))
print(tokens, peak_resident_bytes() - before)
"""


def write_packs(folder: Path, count: int) -> Path:
    """One shard of packs of one long document each, of tokens that don't compress."""
    ids = np.random.default_rng(0).integers(0, 2**31, TOKENS, dtype=np.int32)
    mask = np.ones(TOKENS, np.bool_)
    writer = ArtifactWriter(folder, {})
    with writer.shard(0, "packs") as shard:
        for first in range(0, count, 16):
            rows = [
                {"input_ids": ids ^ number, "loss_mask": mask, "document_lengths": [TOKENS], "uuids": [str(number)]}
                for number in range(first, first + 16)
            ]
            shard.write({"packs": pa.Table.from_pylist(rows, PACKS)})
    writer.finish(context_length=TOKENS)
    return folder


@pytest.mark.full
def test_two_gb_of_packs_take_no_more_memory_than_a_few(tmp_path: Path) -> None:
    """In one file; 200 of them, in the order of training, all over it."""
    packs = write_packs(tmp_path / "packs", 8192)
    assert next(packs.glob("packs-*.parquet")).stat().st_size > 2e9
    done = subprocess.run([sys.executable, "-c", READ, packs], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    tokens, more = map(int, done.stdout.split())
    assert tokens == 200 * TOKENS
    assert more < 100e6

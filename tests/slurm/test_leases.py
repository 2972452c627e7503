"""Two nodes share out a step's shards on a file system whose locks don't reach from one node to the other."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.helpers.small_run import artifacts, finish, small_run
from tests.slurm.conftest import Site

# On a node: locks exclude nobody, the node is a machine of its own, and every shard that gets its name is written down.
SEPARATE_MACHINES = """
import fcntl, os, pathlib, socket

if node := os.environ.get("SLURMD_NODENAME"):
    fcntl.flock = lambda *_: None
    socket.gethostname = lambda: node
    rename = pathlib.Path.rename

    def noted(path, target):
        if str(target).endswith(".parquet"):
            with open(os.environ["RENAMED"], "a") as file:
                file.write(f"{node} {pathlib.Path(target).name}\\n")
        return rename(path, target)

    pathlib.Path.rename = noted
"""


@pytest.mark.full
def test_no_shard_is_done_twice_without_shared_locks(site: Site, calm: Path, tmp_path: Path) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "sitecustomize.py").write_text(SEPARATE_MACHINES)
    renamed = tmp_path / "renamed"
    site.settings["setup"] = [f"export PYTHONPATH={tmp_path}/modules:$PYTHONPATH RENAMED={renamed}"]
    folder = tmp_path / "run"
    for step in ("benchmark_arithmetic", "prompts_train"):
        assert finish(*small_run(folder), "--only", step)[0] == 0
    step = "sample_low_temperature"
    code, out, errors = site.finish(*small_run(folder), "launch.sampling.nodes=2", "--only", step)
    assert code == 0, out[-3000:] + errors[-3000:]
    lines = [line.split() for line in renamed.read_text().splitlines()]
    assert Counter(shard for _, shard in lines) == {f"responses-{index:05d}.parquet": 1 for index in range(4)}
    assert {node for node, _ in lines} == {"node1", "node2"}
    made = artifacts(folder)[step].folder
    for path in made.glob("*.parquet"):
        assert path.read_bytes() == (calm / "artifacts" / made.name / path.name).read_bytes()

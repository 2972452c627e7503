"""The toy recipe on two nodes, through NeMo-Run: the same data and the same losses as on one machine."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from dasd_megatron.artifacts.artifact import Artifact
from tests.helpers.small_run import artifacts, assert_same_run, small_run
from tests.slurm.conftest import Site


@pytest.mark.full
def test_a_run_on_two_nodes_is_the_run_on_one_machine(site: Site, calm: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code, out, errors = site.finish(*small_run(folder), "launch.training.nodes=2")
    assert code == 0, out[-3000:] + errors[-3000:]
    # Sums over ranks are taken in another order where the ranks meet in another: 1e-5 is what layouts may differ by.
    assert_same_run(folder, calm, loss_tolerance=1e-5)
    assert (folder / "report.html").is_file()
    assert json.loads((folder / "summary.json").read_text())["benchmarks"]["arithmetic"]["problems"] == 40
    assert (folder / "final" / "model.safetensors").is_file()
    check_trained_on_two_nodes(site)
    check_manifests_name_what_was_shipped(folder)
    check_nemo_run_knows_it(site, folder)


# By which this test's servers are told from others that run at the same time.
SEED = 271_828


@pytest.mark.full
def test_a_run_starts_servers_for_its_teacher(site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    server = f"engine.teacher={{name: server, server: {{arguments: [--seed, '{SEED}']}}}}"
    nodes = "launch.steps.sample_low_temperature.nodes=2"
    steps = ("benchmark_arithmetic", "prompts_train", "sample_low_temperature")
    only = [argument for step in steps for argument in ("--only", step)]
    code, out, errors = site.finish(*small_run(folder), server, nodes, *only)
    assert code == 0, out[-3000:] + errors[-3000:]
    (made,) = (folder / "artifacts").glob("sample_low_temperature-*")
    assert Artifact(made).manifest["counts"]["responses"] == 96
    assert processes_of(f"--seed {SEED}") == []


def processes_of(name: str) -> list[str]:
    """Command lines of this machine's processes that have this in them; the nodes are this machine."""
    found = [" ".join(process.info["cmdline"] or []) for process in psutil.process_iter(["cmdline"])]
    return [line for line in found if name in line]


def check_trained_on_two_nodes(site: Site) -> None:
    lines = site.cluster.run("sacct", "-n", "-X", "-P", "-o", "JobName%100,State,NodeList").splitlines()
    for stage in ("low_temperature", "high_temperature", "mixed_policy"):
        assert [line.partition("|")[2] for line in lines if f".train_{stage}|" in line] == ["COMPLETED|node[1-2]"]


def check_manifests_name_what_was_shipped(folder: Path) -> None:
    source = json.loads((folder / "submission.json").read_text())["source"]
    assert len(source["commit"]) == 40
    for step in artifacts(folder).values():
        assert Artifact(step.folder).manifest["source"] == source


def check_nemo_run_knows_it(site: Site, folder: Path) -> None:
    experiment = json.loads((folder / "submission.json").read_text())["id"]
    environment = {**site.cluster.environment, "NEMORUN_HOME": str(site.home)}
    command = [str(Path(sys.executable).parent / "nemorun"), "experiment", "status", experiment]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("SUCCEEDED") == len(artifacts(folder))

"""`dasd launch --rehearse` on two nodes: the run's jobs, and what only a cluster can do wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dasd_megatron.config.load import load_recipe
from dasd_megatron.pipeline.graph import build_steps
from dasd_megatron.runtime.submission_record import SUBMISSION
from dasd_megatron.slurm.experiment import job_prefix
from tests.integration.test_rehearsal import QUICK, RECIPE
from tests.slurm.conftest import Site


def rehearse(site: Site, folder: Path, *overrides: str) -> tuple[int, str, str]:
    return site.finish(RECIPE, *QUICK, f"run_dir={folder}", *overrides, "--rehearse")


@pytest.mark.full
def test_a_rehearsal_on_two_nodes(site: Site, tmp_path: Path) -> None:
    """A stage is killed and queued again; then a save takes as long as on a slow disk."""
    site.settings["gpu_hour_price"] = 2.0
    run = tmp_path / "run"
    few = ("evaluation.benchmarks=[]", "launch.training.nodes=2", "launch.grace_period_seconds=30")
    code, out, errors = rehearse(site, run, *few)
    assert code == 0, out[-3000:] + errors[-3000:]
    assert "verdict: every step works" in out
    assert re.search("^hours: [0-9.]+, where each step starts once what it reads is there$", out, re.MULTILINE)
    recipe = load_recipe(tmp_path / "run-rehearsal" / "recipe.yaml")
    stage = build_steps(recipe)["train_low_temperature"]
    name = job_prefix(recipe) + stage.name
    lines = site.cluster.run("sacct", "-n", "-X", "-P", "-D", "-o", "JobName%100,State,NodeList").splitlines()
    states = [line.partition("|")[2] for line in lines if line.startswith(f"{name}|")]
    assert len(states) == 2, states
    assert states[-1] == "COMPLETED|node[1-2]"

    code, watched, errors = rehearse(site, run, *few, "--watch")
    assert code == 0, watched[-3000:] + errors[-3000:]
    assert watched[watched.index("measured") :] == out[out.index("measured") :]

    with (stage.folder / "saves.jsonl").open("a") as file:
        file.write('{"step": 6, "seconds": 50.0}\n')
    code, out, errors = rehearse(site, run, *few)
    assert code == 2, out[-3000:] + errors[-3000:]
    (message,) = re.findall("^to change: .*", out, re.MULTILINE)
    assert (
        "a save 50.0 s, but a stage is told to stop 30 s before its time limit; set launch.grace_period_seconds to 7"
        in message
    )


def test_a_wrong_image(site: Site, tmp_path: Path) -> None:
    site.settings["images"] = {"training": "/images/absent.sqsh", "sampling": "/images/absent.sqsh"}
    code, out, errors = rehearse(site, tmp_path / "run")
    assert code == 2
    assert errors.count("error: ") == 1
    assert "/images/absent.sqsh: no such image on this machine" in errors
    assert "Traceback" not in out + errors


def test_a_node_that_does_not_see_the_run_folder(site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "run-rehearsal"
    folder.mkdir()
    with site.without_folder(folder):
        code, out, errors = rehearse(site, tmp_path / "run")
    assert code == 2, out + errors
    assert f"error: {folder}: not the run folder that this run was submitted with: {SUBMISSION} isn't there on" in out
    assert "choose a run_dir on a file system that all nodes mount" in out

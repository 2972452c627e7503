"""`dasd study` on two nodes: one experiment, in which each step is one job, whichever arms need it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from tests.integration.test_study import STUDY
from tests.slurm.conftest import Site


@pytest.mark.full
def test_each_step_is_one_job(site: Site, tmp_path: Path) -> None:
    site.program = ("-m", "dasd_megatron.cli.main", "study")
    folder = tmp_path / "study"
    file = tmp_path / "study.yaml"
    settings = {**STUDY["settings"], "evaluation.teacher": False, "evaluation.temperatures": [0]}
    file.write_text(
        yaml.safe_dump({**STUDY, "study_dir": str(folder), "seeds": [1], "settings": settings}, sort_keys=False)
    )

    code, out, errors = site.finish(str(file), "--dry-run")
    assert code == 0, out + errors
    assert "2 arms with 1 seed: 22 different steps, 0 of them done" in out
    assert "22 jobs, 0.0 GPU-hours" in out
    assert not folder.exists()

    code, out, errors = site.finish(str(file))
    assert code == 0, out[-3000:] + errors[-3000:]
    assert "22 of 22 steps are done" in out
    lines = site.cluster.run("sacct", "-n", "-X", "-P", "-o", "JobName%200").splitlines()
    jobs = [line.partition(".")[2] for line in lines if line.startswith("study-")]
    assert sorted(jobs) == sorted(path.name for path in (folder / "artifacts").iterdir())
    found = json.loads((folder / "study.json").read_text())
    assert list(found["estimates"]) == ["student", "random", "das"]
    assert "DAS against random" in out
    for arm in STUDY["arms"]:
        assert (folder / arm / "seed-1" / "final" / "model.safetensors").is_file()

    code, again, errors = site.finish(str(file))
    assert code == 0, errors
    assert again[again.index("mini: arithmetic") :] == out[out.index("mini: arithmetic") :]

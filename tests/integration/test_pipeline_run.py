"""The whole pipeline on a small recipe: undisturbed, killed at random moments, and with bad input."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.config.load import load_recipe
from dasd_megatron.pipeline.graph import build_steps
from tests.conftest import ROOT, TOY
from tests.helpers.small_run import (
    RECIPE,
    SMALL,
    artifacts,
    assert_same_rows,
    assert_same_run,
    finish,
    launch,
    small_run,
)

KILLS = 4


def test_run_gives_summary_report_and_model(calm: Path) -> None:
    summary = json.loads((calm / "summary.json").read_text())
    models = ["student", "low_temperature", "high_temperature", "mixed_policy", "teacher"]
    facts = summary["benchmarks"]["arithmetic"]
    assert facts["problems"] == 40
    assert list(facts["measures"]) == list(facts["alignment"]) == models
    assert list(facts["measures"]["teacher"]) == ["greedy", "0.6", "1"]
    assert facts["measures"]["teacher"]["greedy"]["accuracy"]["mean"] > 0.9
    distance = {model: aligned["mean"] for model, aligned in facts["alignment"].items()}
    assert abs(distance["teacher"]) < 1e-3
    assert distance["student"] > distance["low_temperature"] > 0
    assert list(facts["steps"]) == models[1:-1]
    scores = json.loads((calm / "scores.json").read_text())["arithmetic"]["models"]
    assert len(scores["student"]["greedy"]) == 40
    page = (calm / "report.html").read_text()
    assert page.count("<svg") >= 8
    assert "prompts with a choice" in page
    assert "default-src 'none'" in page  # one file, that loads nothing
    assert 'src="' not in page
    assert set(summary["seconds"]) == set(artifacts(calm)) - {"report"}


def test_final_model_answers_the_same_in_transformers_and_vllm(calm: Path) -> None:
    from dasd_megatron.config.sampling import EngineConfig
    from dasd_megatron.sampling.engines.engine import Request, generate_all
    from dasd_megatron.sampling.engines.registry import load_engine
    from dasd_megatron.tokenization.tokenizer import ChatTokenizer

    tokenizer = ChatTokenizer(calm / "final")
    texts = [json.loads(line)["input"] for line in (TOY / "validation.jsonl").read_text().splitlines()[:50]]
    requests = [Request(tokenizer.prompt_ids(text), 0, 64, 0.0, 1.0, tokenizer.stop_ids) for text in texts]
    answers = [
        generate_all(load_engine(calm / "final", EngineConfig(name=name, dtype="float32")), requests)
        for name in ("transformers", "vllm")
    ]
    assert [sample.token_ids.tolist() for sample in answers[0]] == [sample.token_ids.tolist() for sample in answers[1]]


def test_second_run_does_nothing_again(calm: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in calm.rglob("*.parquet")}
    code, out, errors = finish(*small_run(calm))
    assert code == 0, errors[-3000:]
    assert out.count("done before") == len(artifacts(calm))
    assert before == {path: path.stat().st_mtime_ns for path in calm.rglob("*.parquet")}


def test_a_stage_learns_what_was_written_in_turns(calm: Path, tmp_path: Path) -> None:
    folder, options = tmp_path / "run", ["mixed_policy.method=turns", "mixed_policy.turns={student_tokens: 3}"]
    shutil.copytree(calm, folder, symlinks=True)
    (folder / "final").unlink()
    (folder / "final").mkdir()
    code, _, errors = finish(*small_run(folder), *options, "launch.replicas=1")
    assert code == 2
    assert f"{folder}/final: is a folder, where a link to " in errors
    assert "the teacher wrote " in errors
    (folder / "final").rmdir()
    code, _, errors = finish(*small_run(folder), *options, "launch.replicas=1")
    assert code == 0, errors[-3000:]
    os.chdir(ROOT)
    steps = build_steps(load_recipe(RECIPE, [*SMALL, f"run_dir={folder}", *options]))
    written = Artifact(steps["turns_mixed_policy"].folder).manifest
    assert 0.1 < written["written_by_teacher"] < 0.9
    assert Artifact(steps["filter_mixed_policy"].folder).manifest["counts"]["responses"] > 0
    assert (folder / "final").resolve() == steps["export_mixed_policy"].folder.resolve()


def descendants(pid: int) -> list[int]:
    """Process ids of everything started by `pid`, directly or not."""
    listing = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    children: dict[int, list[int]] = {}
    for line in listing.splitlines():
        child, parent = map(int, line.split())
        children.setdefault(parent, []).append(child)
    found, queue = [], [pid]
    while queue:
        own = children.get(queue.pop(), [])
        found += own
        queue += own
    return found


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@pytest.mark.full
@pytest.mark.timeout(1800)
def test_killed_at_random_moments_it_ends_the_same(calm: Path, tmp_path: Path) -> None:
    """kill -9 at moments spread over the whole run: nothing is lost, doubled or different, and nothing is left running.

    What is left by the last one is ended with one replica, which takes half as long on two cores.
    """
    chance = random.Random(1)
    folder = tmp_path / "run"
    steps = list(artifacts(folder))
    kills = 0
    for target in sorted(chance.choices(steps, k=KILLS), key=steps.index):
        process = launch(*small_run(folder))
        assert process.stdout is not None
        for line in process.stdout:
            name = line.partition("] ")[2].partition(":")[0].strip()
            if name in steps and steps.index(name) >= steps.index(target) and "done before" not in line:
                break
        time.sleep(chance.uniform(0, 5))
        started = descendants(process.pid)
        if process.poll() is None:
            kills += 1
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        deadline = time.monotonic() + 10
        while any(map(alive, started)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(map(alive, started)), "a killed run left processes behind"
    code, _, errors = finish(*small_run(folder), "launch.replicas=1")
    assert code == 0, errors[-3000:]
    assert kills >= KILLS - 2
    assert_same_run(folder, calm)


@pytest.mark.full
def test_replicas_and_layout_change_nothing_but_speed(calm: Path, tmp_path: Path) -> None:
    """Two replicas in place of one: the same bytes."""
    for step in ("benchmark_arithmetic", "prompts_train", "sample_low_temperature"):
        code, _, errors = finish(*small_run(tmp_path), "--only", step)
        assert code == 0, errors[-3000:]
    shards = sorted((tmp_path / "artifacts").glob("sample_*/*.parquet"))
    assert len(shards) == 4
    for path in shards:
        assert path.read_bytes() == (calm / "artifacts" / path.parent.name / path.name).read_bytes()


def test_a_killed_replica_gives_its_shard_back(calm: Path, tmp_path: Path) -> None:
    for step in ("benchmark_arithmetic", "prompts_train"):
        assert finish(*small_run(tmp_path), "--only", step)[0] == 0
    folder = artifacts(tmp_path)["sample_low_temperature"].folder
    process = launch(*small_run(tmp_path), "--only", "sample_low_temperature")
    while process.poll() is None and len(list(folder.glob(".claims/*"))) < 2:
        time.sleep(0.01)
    replicas = [pid for pid in descendants(process.pid) if "--replica" in Path(f"/proc/{pid}/cmdline").read_text()]
    assert len(replicas) == 2
    os.kill(replicas[0], signal.SIGKILL)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    assert len(list(folder.glob("*.parquet"))) == 4
    for path in folder.glob("*.parquet"):
        assert_same_rows(path, calm / "artifacts" / folder.name / path.name)


@pytest.mark.full
def test_truncated_shard_stops_the_step_that_reads_it(calm: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(calm, folder, symlinks=True)
    steps = artifacts(folder)
    shard = steps["sample_low_temperature"].folder / "responses-00001.parquet"
    os.truncate(shard, shard.stat().st_size // 2)
    shutil.rmtree(steps["filter_low_temperature"].folder)
    code, _, errors = finish(*small_run(folder))
    assert code == 2
    assert f"{shard}: truncated or changed" in errors
    assert f"delete the folder {shard.parent} and run again" in errors
    assert "Traceback" not in errors
    shutil.rmtree(shard.parent)  # the remedy
    code, _, errors = finish(*small_run(folder))
    assert code == 0, errors[-3000:]
    assert_same_run(folder, calm)


@pytest.mark.full
def test_killed_inside_a_save_it_goes_on(calm: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "run"
    shutil.copytree(calm, folder, symlinks=True)
    stage = artifacts(folder)["train_low_temperature"].folder
    shutil.rmtree(stage)
    process = launch(*small_run(folder))
    while process.poll() is None and not list(stage.glob(".step-*.tmp")):
        time.sleep(0.0005)
    assert process.poll() is None, "the run ended before a save was seen"
    process.kill()
    process.communicate()
    code, _, errors = finish(*small_run(folder))
    assert code == 0, errors[-3000:]
    assert_same_run(folder, calm)


def check_refused(errors: str, code: int, message: str) -> None:
    assert code == 2
    assert message in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["teacher.model=absent"], "error: teacher.model: absent: no such model folder"),
        (["training.epoch=2"], "unknown key 'training.epoch'; the nearest valid name is 'training.epochs'"),
        (["run_dir=/proc/run"], "can't be written"),
        (["--only", "sample_low"], "no step 'sample_low'; the nearest is 'sample_low_temperature'"),
        (["--only", "pack_low_temperature"], "which isn't finished: run that first"),
    ],
)
def test_refusals(tmp_path: Path, overrides: list[str], message: str) -> None:
    given = [
        str(RECIPE),
        *([] if any(o.startswith("run_dir") for o in overrides) else [f"run_dir={tmp_path}"]),
        *overrides,
    ]
    code, _, errors = finish(*given)
    check_refused(errors, code, message)


def test_malformed_prompt_line(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    path.write_text('{"input": "2*2?", "answer": "4"}\n{"input": \n')
    code, _, errors = finish(
        str(RECIPE), f"run_dir={tmp_path}/run", f"evaluation.benchmarks.0.path={path}", "--only", "benchmark_arithmetic"
    )
    check_refused(errors, code, f"{path}: line 2: not valid JSON")


def test_full_disk(small_disk: Any) -> None:
    folder = small_disk("16k")
    code, _, errors = finish(str(RECIPE), f"run_dir={folder}/run", "--only", "benchmark_arithmetic")
    check_refused(errors, code, "the disk is full; free some space and run the same command again")
    assert not list(folder.rglob("*.parquet")) or not list(folder.rglob("COMPLETE"))


def test_two_runs_of_one_folder_exclude_each_other(tmp_path: Path) -> None:
    from dasd_megatron.utils.lease import hold

    with hold(tmp_path / ".lock", "busy"):
        code, _, errors = finish(str(RECIPE), f"run_dir={tmp_path}")
    check_refused(errors, code, "another process is running this recipe")


def test_dry_run_says_what_is_to_do(tmp_path: Path) -> None:
    code, out, _ = finish(str(RECIPE), f"run_dir={tmp_path}/run", "--dry-run")
    assert code == 0
    assert "to do  sample_low_temperature" in out
    assert out.strip().endswith("0 of 35 steps are done")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("tool", "option", "good", "bad"),
    [
        ("evaluate", "--step", "benchmark_arithmetic", "filter_low_temperature"),
        ("train", "--stage", "low_temperature", "student"),
    ],
)
def test_step_tools_run_their_own_kind(tmp_path: Path, tool: str, option: str, good: str, bad: str) -> None:
    command = [sys.executable, f"tools/{tool}.py", str(RECIPE), f"run_dir={tmp_path}", option]
    done = subprocess.run([*command, bad], cwd=ROOT, capture_output=True, text=True)
    check_refused(done.stderr, done.returncode, "not one of")
    done = subprocess.run([*command, good], cwd=ROOT, capture_output=True, text=True)
    if tool == "evaluate":
        assert done.returncode == 0, done.stderr
    else:  # its packs aren't made
        check_refused(done.stderr, done.returncode, "isn't finished: run that first")


@pytest.mark.parametrize("late", ["0", "1"])
def test_an_error_of_every_rank_is_said_once(tmp_path: Path, late: str) -> None:
    """Whichever rank comes to it first."""
    (tmp_path / "sitecustomize.py").write_text(
        f"import os, time\ntime.sleep(3 * (os.environ.get('RANK') == '{late}'))\n"
    )
    command = [sys.executable, "tools/train.py", str(RECIPE), f"run_dir={tmp_path}/run", "--stage", "low_temperature"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    check_refused(done.stderr, done.returncode, "isn't finished: run that first")
    assert done.stderr.count("isn't finished") == 1


def test_an_error_of_one_rank_alone_is_said(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dasd_megatron.runtime.run_step", str(RECIPE), "train_low_temperature"]
    environment = {**os.environ, "RANK": "1", "WORLD_SIZE": "2"}
    done = subprocess.run([*command, f"run_dir={tmp_path}"], cwd=ROOT, capture_output=True, text=True, env=environment)
    check_refused(done.stderr, done.returncode, "isn't finished: run that first")

#!/usr/bin/env python
"""Curation at one percent of the paper's volume, step by step as a user runs it: synthetic responses of the paper's lengths
(synthetic_responses.py), filtered, selected and packed, up to the first training step's batch.

Three runs: of the whole volume; the same, with every step killed once; and of a part, which tells whether memory grows with the
volume. Times and bytes are extrapolated to the paper's volume and put beside the plan's. The last line is JSON.

example:
  python -m benchmarks.curation_rehearsal
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dasd_megatron.artifacts.artifact import Artifact, shard_name
from dasd_megatron.config.load import load_recipe
from dasd_megatron.pipeline.graph import build_steps
from dasd_megatron.planning.costs import Costs
from dasd_megatron.planning.job_resources import job_resources
from dasd_megatron.steps.step import Step
from tests.helpers.published_models import published_model

CORES = os.cpu_count() or 1
# Responses of a shard: 500, of four candidates a prompt. 26 shards are 13,000, one percent of the paper's 1.3M.
PROMPTS, CANDIDATES, SHARDS, PAPER_SHARDS = 125, 4, 26, 2600
TEACHER, STUDENT = "gpt-oss-120b", "Qwen3-4B-Instruct-2507"
STEPS = ("filter", "select", "pack")
STAGE = "high_temperature"
# In training's first step.
BATCH = 64


@dataclass(frozen=True)
class Run:
    """A run folder with its recipe, for so many shards of responses."""

    folder: Path
    shards: int

    @property
    def recipe(self) -> Path:
        """Its file."""
        return self.folder / "recipe.yaml"  # which JSON is

    def write_recipe(self, models: Path) -> None:
        """That of the paper's second stage, on this machine's cores."""
        self.folder.mkdir()
        content = {
            "name": "rehearsal",
            "run_dir": str(self.folder / "run"),
            "teacher": {"model": str(models / TEACHER), "response_format": "harmony"},
            "student": {"model": str(models / STUDENT), "response_format": "think"},
            "prompts": {"train": {"path": __file__, "limit": self.shards * PROMPTS}},  # not read
            "engine": {"max_length": 131_072},
            "sampling": {"responses_per_prompt": CANDIDATES, "prompts_per_shard": PROMPTS, "max_tokens": 65_536},
            "packing": {"context_length": 65_536},
            "training": {"global_batch": BATCH},
            "stages": [{"name": STAGE, "kind": "sampled", "temperature": 1.0}],
            "launch": {"data": {"cpus_per_node": CORES}},
        }
        self.recipe.write_text(json.dumps(content))

    def step(self, kind: str) -> Step:
        """One of its steps."""
        return build_steps(load_recipe(self.recipe))[f"{kind}_{STAGE}"]

    def digest(self) -> str:
        """Of all that the steps wrote."""
        found = hashlib.sha256()
        for kind in STEPS:
            manifest = Artifact(self.step(kind).folder).manifest
            found.update(json.dumps([manifest["shards"], manifest["counts"]]).encode())
        return found.hexdigest()


@dataclass(frozen=True)
class Measured:
    """What a process and those that it started used."""

    seconds: float
    peak_gib: float
    output: str


def run(command: list[str], kill_when: Callable[[], bool] | None = None) -> Measured:
    """Runs a command to its end, or kills it and all that it started as soon as `kill_when` says so."""
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True, start_new_session=True)
    if kill_when is not None:
        while process.poll() is None:
            if kill_when():
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                return Measured(time.monotonic() - start, 0.0, "")
            time.sleep(0.01)
        raise SystemExit(f"{' '.join(command)} ended before it could be killed")
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)  # of the process and of all that it waited for
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed, see above")
    return Measured(time.monotonic() - start, usage.ru_maxrss / 2**20, output)


def curate(run_: Run, kind: str, kill_when: Callable[[], bool] | None = None) -> Measured:
    """One step, as a user runs it."""
    tool = str(Path(__file__).parents[1] / "tools" / "curate.py")
    return run([tool, str(run_.recipe), "--step", f"{kind}_{STAGE}"], kill_when)


def rehearse(run_: Run, kill: bool = False) -> dict[str, Measured]:
    """All steps and the first batch; with `kill` each step is killed when a third of its shards is done, and run again."""
    found = {}
    for kind in STEPS:
        if kind == "select":
            _apart(make_scored, run_)
        if kill:
            folder = run_.step(kind).folder
            curate(run_, kind, partial(_a_third_is_done, folder, kind, run_.shards))
        found[kind] = curate(run_, kind)
        print(
            f"{run_.folder.name:>12} {kind:<8} {found[kind].seconds:7.1f} s {found[kind].peak_gib:5.2f} GiB", flush=True
        )
    found["batch"] = run(["-m", "benchmarks.curation_rehearsal", "--batch", str(run_.step("pack").folder)])
    return found


def _a_third_is_done(folder: Path, kind: str, shards: int) -> bool:
    if kind == "pack":  # one shard, half-written
        return any(folder.glob(".*.tmp"))
    table = "candidates" if kind == "select" else "responses"
    return len(list(folder.glob(f"{table}-*.parquet"))) >= shards // 3


def make_sampled(run_: Run) -> None:
    """The artifact of the step `sample`."""
    with ProcessPoolExecutor(CORES) as pool:
        list(pool.map(_make_shards, [run_] * CORES, range(CORES)))
    finish_sampled(run_)


def finish_sampled(run_: Run) -> None:
    """Counts what is there."""
    from dasd_megatron.artifacts.writer import ArtifactWriter

    writer = ArtifactWriter(run_.step("sample").folder, {})
    tokens = sum(sum(table["tokens"].to_pylist()) for table in writer.tables("responses", ["tokens"]))
    writer.finish(counts={"responses": run_.shards * PROMPTS * CANDIDATES, "tokens": tokens})


def link_sampled(run_: Run, source: Run) -> None:
    """As many shards of another run's responses as this one has."""
    folder, found = run_.step("sample").folder, source.step("sample").folder
    folder.mkdir(parents=True)
    for shard in range(run_.shards):
        (folder / shard_name("responses", shard)).hardlink_to(found / shard_name("responses", shard))
    finish_sampled(run_)


def _make_shards(run_: Run, worker: int) -> None:
    from benchmarks.synthetic_responses import ResponseMaker, write_sampled
    from dasd_megatron.artifacts.writer import ArtifactWriter
    from dasd_megatron.tokenization.tokenizer import ChatTokenizer

    maker = ResponseMaker(ChatTokenizer(load_recipe(run_.recipe).teacher.model), seed=worker)
    writer = ArtifactWriter(run_.step("sample").folder, {})
    write_sampled(writer, maker, range(worker, run_.shards, CORES), PROMPTS, CANDIDATES)


def make_scored(run_: Run) -> None:
    """The artifact of the step `score`."""
    from benchmarks.synthetic_responses import write_scored
    from dasd_megatron.artifacts.writer import ArtifactWriter

    write_scored(ArtifactWriter(run_.step("score").folder, {}), Artifact(run_.step("filter").folder))


def print_batch(packs: Path) -> None:
    """The first training step's batch, as JSON: a digest, and how long it took to read."""
    from dasd_megatron.training.data import PackDataset

    start, found = time.monotonic(), hashlib.sha256()
    dataset = PackDataset(Artifact(packs), seed=0, isolate_documents=True)
    for sample in range(BATCH):
        pack = dataset.pack(sample)
        found.update(pack.ids.tobytes() + pack.targets.tobytes() + bytes(str(pack.lengths), "ascii"))
    print(json.dumps({"digest": found.hexdigest(), "seconds": round(time.monotonic() - start, 2)}))


def beside_the_plan(full: Run, paper: Run, times: dict[str, Measured]) -> dict[str, Any]:
    """Hours and bytes of each step at the paper's volume: in proportion to the tokens, and the plan's."""
    recipe = load_recipe(paper.recipe)
    costs = Costs(recipe, "h100")
    plans = {
        kind: costs.of(paper.step(kind), job_resources(recipe, paper.step(kind), 8)) for kind in ("sample", *STEPS)
    }
    factor = (plans["sample"].tokens_out or 0.0) / Artifact(full.step("sample").folder).manifest["counts"]["tokens"]
    found: dict[str, dict[str, float]] = {}
    for kind, plan in plans.items():
        size = sum(file.stat().st_size for file in full.step(kind).folder.rglob("*.parquet"))
        found[kind] = {"gb": factor * size / 1e9, "planned_gb": (plan.bytes or 0.0) / 1e9}
        if kind in STEPS:
            found[kind] |= {"hours": factor * times[kind].seconds / 3600, "planned_hours": plan.hours or 0.0}
    ratios = {}
    for name in ("gb", "hours"):
        sums = [sum(step.get(key, 0.0) for step in found.values()) for key in (name, f"planned_{name}")]
        ratios[f"{name}_by_plan"] = round(sums[0] / sums[1], 3)
    rounded = {kind: {name: round(value, 2) for name, value in step.items()} for kind, step in found.items()}
    return {**rounded, **ratios}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=SHARDS, help="of 500 responses; by default %(default)s")
    parser.add_argument("--folder", type=Path, help="where to work, 4 GB; by default a temporary one")
    parser.add_argument("--batch", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.batch:
        print_batch(args.batch)
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        print(json.dumps(compare(Path(name), args.shards)))


def compare(folder: Path, shards: int) -> dict[str, Any]:
    """All three runs; their figures."""
    sizes = {"full": shards, "killed": shards, "part": max(1, shards // 4), "paper": PAPER_SHARDS}
    for name in (TEACHER, STUDENT):
        published_model(folder, name)
    full, killed, part, paper = (Run(folder / name, size) for name, size in sizes.items())
    for run_ in (full, killed, part, paper):
        run_.write_recipe(folder)
    _apart(make_sampled, full)
    for run_ in (killed, part):
        link_sampled(run_, full)
    undisturbed = rehearse(full)
    disturbed = rehearse(killed, kill=True)
    smaller = rehearse(part)
    batch = json.loads(undisturbed["batch"].output)
    return {
        **Artifact(full.step("sample").folder).manifest["counts"],
        "killed_same_files": killed.digest() == full.digest(),
        "killed_same_batch": json.loads(disturbed["batch"].output)["digest"] == batch["digest"],
        "batch_seconds": batch["seconds"],
        "seconds": {kind: round(undisturbed[kind].seconds, 1) for kind in STEPS},
        "peak_gib": {kind: round(measured.peak_gib, 2) for kind, measured in undisturbed.items()},
        "peak_gib_of_part": {kind: round(measured.peak_gib, 2) for kind, measured in smaller.items()},
        "fill": round(Artifact(full.step("pack").folder).manifest["fill"], 5),
        "dropped": Artifact(full.step("filter").folder).manifest["dropped"],
        "at_the_papers_volume": beside_the_plan(full, paper, undisturbed),
    }


def _apart(make: Callable[[Run], None], run_: Run) -> None:
    """In a process of its own: the peak memory of a process counts for those that it starts."""
    with ProcessPoolExecutor(1) as pool:
        pool.submit(make, run_).result()


if __name__ == "__main__":
    main()

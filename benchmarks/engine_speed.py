#!/usr/bin/env python
"""Tokens/s of vLLM as the product runs it, in one process, and with its scheduler in a process of its own; and whether an engine
can be started as soon as one before it has ended.

A model with random weights writes responses of one length, twice as many as it decodes together: what is counted is the time in
which it is full. Each way is a process of its own. The last line is JSON.

examples:
  python -m benchmarks.engine_speed --size 4B --batch 256
  python -m benchmarks.engine_speed --size small --dtype float32 --batch 4 --tokens 8
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.scoring import SIZES, documents_of, random_folder
from dasd_megatron.config.sampling import EngineConfig
from dasd_megatron.sampling.engines.engine import Request
from dasd_megatron.utils.process_group import exit_at_once

# Without stop ids a response ends at its length.
PROMPT = 256


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """In this process: seconds until the engine takes requests, and its tokens/s while it is full."""
    from dasd_megatron.sampling.engine_probe import decode_while_full
    from dasd_megatron.sampling.engines import vllm_engine
    from dasd_megatron.sampling.engines.registry import load_engine

    vllm_engine._ENVIRONMENT["VLLM_ENABLE_V1_MULTIPROCESSING"] = str(int(args.own_process))
    config = EngineConfig(
        dtype=args.dtype,
        max_batch=args.batch,
        max_length=PROMPT + args.tokens + 1,
        tensor_parallel=args.tensor_parallel,
    )
    start = time.monotonic()
    engine = load_engine(args.model, config)
    loaded = time.monotonic() - start
    prompts = documents_of([PROMPT] * 2 * args.batch, args.model)
    requests = [Request(ids, seed, args.tokens, 1.0, 1.0, ()) for seed, ids in enumerate(prompts)]
    decoded = decode_while_full(engine, requests)
    return {"load_seconds": loaded, "tokens_per_second": decoded.tokens / decoded.seconds}


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="0.6B")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="bfloat16")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--gpus", type=int, default=1, help="with several, engines of two GPUs are measured, too")
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--own-process", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--tensor-parallel", type=int, default=1, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.model:
        print(json.dumps(measure(args)), flush=True)
        exit_at_once()  # as a step's replica ends
    common = ["--dtype", args.dtype, "--batch", str(args.batch), "--tokens", str(args.tokens)]
    ways = {"one process": [], "scheduler in its own": ["--own-process"]}
    if args.gpus > 1:  # the second one starts as soon as the first has ended
        ways |= {"two GPUs": ["--tensor-parallel", "2"], "two GPUs, at once again": ["--tensor-parallel", "2"]}
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        model = random_folder(Path(folder), args.size, args.dtype)
        for name, options in ways.items():
            command = [sys.executable, "-m", "benchmarks.engine_speed", "--model", str(model), *common, *options]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
            row: dict[str, Any] = {"engine": name}
            row |= {"problem": "failed"} if done.returncode else json.loads(done.stdout.splitlines()[-1])
            rows.append(row)
            print(row, flush=True)
    print(json.dumps(rows))
    return int(any("problem" in row for row in rows))


if __name__ == "__main__":
    sys.exit(main())

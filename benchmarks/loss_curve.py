#!/usr/bin/env python
"""Loss curves of a real model, SmolLM2-135M, beside the usual stack: transformers' model, torch's autocast and AdamW.

Both sides train on the same packs in the same order, of several seeds, in fp32 and in bf16 (here Megatron's bf16 with fp32 master
weights, there autocast over fp32 weights), with the same schedule, clipping and weight decay. Documents are texts of the packages
that are installed, each isolated from its neighbours. Losses on packs that nobody trained on are taken on the way.

Each run's numbers are kept in --folder, so that a benchmark that was killed goes on. Writes a table, and a figure; the last line
is JSON.

example:
  python -m benchmarks.loss_curve --figure docs/images/loss_curve.svg
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.synthetic_responses import installed_texts
from dasd_megatron.artifacts.artifact import Artifact, is_complete
from dasd_megatron.artifacts.training_files import CHECKPOINT, METRICS
from dasd_megatron.artifacts.writer import ArtifactWriter
from dasd_megatron.config.training import TrainingConfig
from dasd_megatron.curation.packing import HELD_OUT, PACKS
from dasd_megatron.megatron_model.micro_batch import Pack
from dasd_megatron.training.data import PackDataset
from dasd_megatron.training.lr_schedule import learning_rate
from dasd_megatron.training.train_step_config import TrainConfig
from dasd_megatron.utils.files import write_json

SIDES, PRECISIONS = ("ours", "transformers"), ("fp32", "bf16")
# Tokens of a pack, packs of a step, and packs that are held out (a global batch of them is measured).
CONTEXT, GLOBAL_BATCH, SHORTEST = 128, 2, 16
# Steps of the end whose mean is the loss of a run.
LAST = 20


def write_packs(folder: Path, model: Path, steps: int) -> None:
    """An artifact of packs: as many as the steps take, and some that are held out."""
    from transformers import AutoTokenizer

    random = np.random.default_rng(0)
    tokenizer = AutoTokenizer.from_pretrained(str(model))
    texts = installed_texts("*.rst", "*.md", "*.txt", "METADATA")
    tokens = iter([token for text in random.permutation(texts) for token in tokenizer(text)["input_ids"]])
    rows = []
    for _ in range(GLOBAL_BATCH * (steps + 1)):
        lengths = [int(random.integers(SHORTEST, CONTEXT - SHORTEST))]
        lengths.append(CONTEXT - lengths[0])
        rows.append(
            {
                "input_ids": [next(tokens) for _ in range(CONTEXT)],
                "loss_mask": [True] * CONTEXT,
                "document_lengths": lengths,
                "uuids": ["", ""],
            }
        )
    writer = ArtifactWriter(folder, {})
    for table, content in ((HELD_OUT, rows[:GLOBAL_BATCH]), ("packs", rows[GLOBAL_BATCH:])):
        writer.write_shard(table, 0, pa.Table.from_pylist(content, PACKS))
    writer.finish(context_length=CONTEXT)


def training_config(args: argparse.Namespace) -> TrainingConfig:
    """Of both sides."""
    return TrainingConfig(
        steps=args.steps, global_batch=GLOBAL_BATCH, precision=args.precision, held_out_every=10, save_every=50
    )


def train_ours(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """A stage, as a recipe runs it; its log."""
    from dasd_megatron.steps.step import StepContext
    from dasd_megatron.training.stage import train

    config = TrainConfig(training=training_config(args), isolate_documents=True, seed=args.seed)
    inputs = {"model": args.model, "start": args.folder / "start", "packs": args.folder / "packs"}
    train(StepContext("train", config, inputs, ArtifactWriter(folder, {})))
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def train_transformers(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The usual loop; the same numbers."""
    from transformers import AutoModelForCausalLM

    training, artifact = training_config(args), Artifact(args.folder / "packs")
    packs = PackDataset(artifact, args.seed, isolate_documents=True)
    held_out = [PackDataset(artifact, args.seed, True, HELD_OUT).pack(n) for n in range(GLOBAL_BATCH)]
    model = AutoModelForCausalLM.from_pretrained(str(args.model), dtype=torch.float32).train()
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in parameters if p.dim() == 1], "weight_decay": 0.0},
    ]
    betas = (training.adam_beta1, training.adam_beta2)
    optimizer = torch.optim.AdamW(groups, lr=1.0, betas=betas, eps=training.adam_eps)
    lines: list[dict[str, Any]] = []
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, args.steps, training)
        optimizer.zero_grad(set_to_none=True)
        batch = [packs.pack(sample) for sample in range(step * GLOBAL_BATCH, (step + 1) * GLOBAL_BATCH)]
        loss = token_mean(model, batch, args.precision)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = torch.nn.utils.clip_grad_norm_(parameters, training.clip_grad)
        optimizer.step()
        lines.append({"step": step + 1, "loss": float(loss.detach()), "grad_norm": float(norm)})
        if (step + 1) % training.held_out_every == 0 or step + 1 == args.steps:
            with torch.no_grad():
                lines[-1]["held_out_loss"] = float(token_mean(model, held_out, args.precision))
        print(lines[-1], file=sys.stderr, flush=True)
    return lines


def token_mean(model: Any, packs: list[Pack], precision: str) -> torch.Tensor:
    """Over documents as rows of a batch, padded on the right."""
    documents = [document for pack in packs for document in documents_of(pack)]
    ids = torch.nn.utils.rnn.pad_sequence(documents, batch_first=True)
    labels = torch.nn.utils.rnn.pad_sequence(documents, batch_first=True, padding_value=-100)[:, 1:]
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        logits = model(input_ids=ids).logits[:, :-1]
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100)


def documents_of(pack: Pack) -> Iterator[torch.Tensor]:
    """Their tokens."""
    yield from torch.split(torch.from_numpy(pack.ids.astype(np.int64)), list(pack.lengths))


def run(args: argparse.Namespace, side: str, precision: str, seed: int) -> list[dict[str, Any]]:
    """One run's log, in a process of its own unless it was made before."""
    name = f"{side}-{precision}-{seed}"
    path: Path = args.folder / f"{name}.json"
    if not path.is_file():
        print(f"{name} ...", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "benchmarks.loss_curve", "--run", side, "--precision", precision]
        command += ["--seed", str(seed), "--steps", str(args.steps), "--folder", str(args.folder)]
        command += ["--model", str(args.model), "--threads", str(args.threads)]
        with (args.folder / f"{name}.log").open("w") as log:
            subprocess.run(command, stderr=log, check=True)
    lines: list[dict[str, Any]] = json.loads(path.read_text())
    return lines


def summary(lines: list[dict[str, Any]]) -> dict[str, float]:
    """Of a run: the loss of its last steps, and on what is held out."""
    return {
        "loss": float(np.mean([line["loss"] for line in lines[-LAST:]])),
        "held_out_loss": float(lines[-1]["held_out_loss"]),
    }


def print_table(found: dict[tuple[str, str, int], list[dict[str, Any]]], seeds: list[int]) -> list[dict[str, Any]]:
    """Means over seeds, their standard deviation, and how far the two sides are from one another with the same seed."""
    rows: list[dict[str, Any]] = []
    print(f"{'':>24} {'loss':>16} {'held out':>16} {'largest difference of a step':>30}")
    for precision in PRECISIONS:
        for side in SIDES:
            of_seeds = [summary(found[side, precision, seed]) for seed in seeds]
            row: dict[str, Any] = {"side": side, "precision": precision}
            for name in ("loss", "held_out_loss"):
                values = [of_seed[name] for of_seed in of_seeds]
                row[name], row[f"{name}_sd"] = (
                    float(np.mean(values)),
                    float(np.std(values, ddof=1)) if seeds[1:] else 0.0,
                )
            rows.append(row)
        pairs = [
            (one["loss"], other["loss"])
            for seed in seeds
            for one, other in zip(found["ours", precision, seed], found["transformers", precision, seed], strict=True)
        ]
        rows[-1]["largest_difference"] = max(abs(one - other) for one, other in pairs)
        for row in rows[-2:]:
            spread = f"{row['largest_difference']:.1e}" if "largest_difference" in row else ""
            columns = [f"{row[name]:.4f} ± {row[f'{name}_sd']:.4f}" for name in ("loss", "held_out_loss")]
            print(f"{row['precision']:>8} {row['side']:>15} {columns[0]:>16} {columns[1]:>16} {spread:>30}")
    return rows


def draw(found: dict[tuple[str, str, int], list[dict[str, Any]]], seeds: list[int], path: Path) -> None:
    """The loss on what is held out, by step: a panel for each precision, a line for each run."""
    import matplotlib.pyplot as plt

    from dasd_megatron.report.figure_style import COLORS  # and its style

    figure, panels = plt.subplots(1, len(PRECISIONS), figsize=(9, 3.6), sharey=True, layout="constrained")
    for axes, precision in zip(panels, PRECISIONS, strict=True):
        for (number, side), seed in product(enumerate(SIDES), seeds):
            points = [line for line in found[side, precision, seed] if "held_out_loss" in line]
            axes.plot(
                [line["step"] for line in points],
                [line["held_out_loss"] for line in points],
                color=COLORS[number],
                linestyle=("-", "--")[number],
                label=side if seed == seeds[0] else None,
            )
        axes.set_title(precision)
        axes.set_xlabel("step")
    panels[0].set_ylabel("held-out loss, nats a token")
    panels[0].legend()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the order of packs")
    parser.add_argument("--folder", type=Path, default=Path("benchmark-loss-curve"), help="where to keep runs")
    parser.add_argument("--figure", type=Path, help="an SVG file")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", type=Path, help="a model folder, in place of SmolLM2-135M-Instruct")
    for hidden, kind in (("--run", str), ("--precision", str), ("--seed", int)):
        parser.add_argument(hidden, type=kind, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        torch.set_num_threads(args.threads)
        name = f"{args.run}-{args.precision}-{args.seed}"
        lines = train_ours(args, args.folder / name) if args.run == "ours" else train_transformers(args)
        write_json(args.folder / f"{name}.json", lines)
        return
    if args.model is None:
        from tests.helpers.smollm2 import smollm2_folder

        args.model = smollm2_folder()
    args.folder.mkdir(parents=True, exist_ok=True)
    if not (args.folder / "start").is_dir():
        from conversion.convert import import_hf

        import_hf(args.model, args.folder / "start" / CHECKPOINT)
    if not is_complete(args.folder / "packs"):
        write_packs(args.folder / "packs", args.model, args.steps)
    runs = product(args.seeds, PRECISIONS, SIDES)
    found = {(side, precision, seed): run(args, side, precision, seed) for seed, precision, side in runs}
    rows = print_table(found, args.seeds)
    if args.figure:
        draw(found, args.seeds, args.figure)
    print(json.dumps(rows))


if __name__ == "__main__":
    main()

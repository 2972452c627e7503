"""The trainer against transformers, against itself in other layouts, and after being killed."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conversion.convert import export_hf, import_hf
from conversion.hf_model import HFModel
from dasd_megatron.errors import UserError
from dasd_megatron.recipe.schema import Parallel
from dasd_megatron.training.checkpoint import load_weights
from dasd_megatron.training.data import MicroBatch, Pack, make_micro_batches
from dasd_megatron.training.distributed import process_groups
from dasd_megatron.training.loss import loss_sum
from dasd_megatron.training.model import ModelOptions, build_model
from dasd_megatron.training.padding import Alignment
from tests.conftest import ROOT, TOY
from tests.models import CONTEXT, VOCABULARY, random_packs, tiny_model, training_context


def random_pack(lengths: list[int], vocabulary: int, seed: int = 0) -> Pack:
    generator = np.random.default_rng(seed)
    ids = generator.integers(0, vocabulary, sum(lengths)).astype(np.int32)
    return Pack(ids, generator.random(sum(lengths)) < 0.7, lengths)


def micro_batch(pack: Pack) -> MicroBatch:
    """With a tail of padding."""
    return make_micro_batches([pack], Alignment(1, 16))[0]


def megatron_model(folder: Path, checkpoint: Path) -> Any:
    chunks = build_model(HFModel(folder), Parallel(), ModelOptions(), CONTEXT)
    load_weights(chunks, checkpoint)
    return chunks[0]


def logits_of(model: Any, batch: MicroBatch) -> torch.Tensor:
    output = model(batch.input_ids, batch.position_ids, attention_mask=None, packed_seq_params=batch.documents)
    return output[0]


def loss_of(model: Any, batch: MicroBatch, vocabulary: int) -> torch.Tensor:
    def loss(hidden_states: torch.Tensor, output_layer: Any, output_weight: Any, **_: Any) -> torch.Tensor:
        weight = output_layer.weight if output_weight is None else output_weight
        return loss_sum(hidden_states, weight, batch.labels, batch.loss_mask, vocabulary, sequence_parallel=False)

    return model(
        batch.input_ids,
        batch.position_ids,
        attention_mask=None,
        packed_seq_params=batch.documents,
        output_processor=loss,
        padding_mask=batch.padding,
    )


@pytest.fixture(params=["teacher", "student", "tied", "untied"])
def model_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param in ("teacher", "student"):
        return TOY / request.param
    return tiny_model(tmp_path / "hf", tied=request.param == "tied")


LENGTHS = [3, 40, 1, 17, 5, 60]


def test_logits_equal_transformers(model_folder: Path, tmp_path: Path) -> None:
    """fp32, each document of a pack against transformers on that document alone."""
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(str(model_folder), dtype=torch.float32)
    import_hf(model_folder, tmp_path / "megatron")
    batch = micro_batch(random_pack(LENGTHS, reference.config.vocab_size))
    with process_groups(Parallel(), 0), torch.no_grad():
        logits = logits_of(megatron_model(model_folder, tmp_path / "megatron"), batch)
    cuts = [0, *np.cumsum(LENGTHS).tolist()]
    for start, end in pairwise(cuts):
        with torch.no_grad():
            expected = reference(input_ids=batch.input_ids[:, start:end]).logits[0]
        # Different order of summation in attention and MLP, at fp32 resolution.
        torch.testing.assert_close(logits[start:end], expected, atol=1e-4, rtol=0)


def test_loss_and_gradients_equal_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = tiny_model(tmp_path / "hf")
    reference = AutoModelForCausalLM.from_pretrained(str(folder), dtype=torch.float32)
    import_hf(folder, tmp_path / "megatron")
    batch = micro_batch(random_pack(LENGTHS, VOCABULARY))
    with process_groups(Parallel(), 0):
        model = megatron_model(folder, tmp_path / "megatron")
        total, targets = loss_of(model, batch, VOCABULARY), batch.loss_mask.sum()
        (total / targets).backward()
        embedding = model.embedding.word_embeddings.weight.grad
        fc2 = model.decoder.layers[1].mlp.linear_fc2.weight.grad
    losses = torch.zeros(())
    for start, end in pairwise([0, *np.cumsum(LENGTHS).tolist()]):
        logits = reference(input_ids=batch.input_ids[:, start:end]).logits[0]
        loss = torch.nn.functional.cross_entropy(logits, batch.labels[0, start:end], reduction="none")
        losses = losses + (loss * batch.loss_mask[0, start:end]).sum()
    (losses / targets).backward()
    torch.testing.assert_close(total, losses, atol=0, rtol=1e-5)
    for ours, theirs in (
        (embedding, reference.model.embed_tokens.weight.grad),
        (fc2, reference.model.layers[1].mlp.down_proj.weight.grad),
    ):
        assert float((ours - theirs).norm() / theirs.norm()) < 1e-5


def test_round_trip_is_bit_equal(model_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    import_hf(model_folder, tmp_path / "megatron")
    export_hf(tmp_path / "megatron", model_folder, tmp_path / "hf-again")
    before, after = (load_file(folder / "model.safetensors") for folder in (model_folder, tmp_path / "hf-again"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    assert json.loads((tmp_path / "hf-again" / "config.json").read_text()) == HFModel(model_folder).config


def start_training(context: Path) -> subprocess.Popen[str]:
    parallel = Parallel(**json.loads(context.read_text())["execution"]["parallel"])
    command = [sys.executable, "-m"]
    if parallel.world_size > 1:
        command += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(parallel.world_size), "-m"]
    return subprocess.Popen(
        [*command, "tests.integration.train_ranks", str(context)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ,
    )


def train(context: Path) -> list[dict[str, Any]]:
    process = start_training(context)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    output = Path(json.loads(context.read_text())["output"])
    return [json.loads(line) for line in (output / "steps.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model, its checkpoint, packs, and the folder to work in."""
    folder = tmp_path_factory.mktemp("training")
    model = tiny_model(folder / "hf", tied=True)
    import_hf(model, folder / "start" / "checkpoint")
    return {"model": model, "start": folder / "start", "packs": random_packs(folder / "packs", 11), "folder": folder}


def context_file(prepared: dict[str, Path], name: str, parallel: Parallel, **settings: Any) -> Path:
    folder = prepared["folder"]
    return training_context(
        folder / f"{name}.json",
        prepared["model"],
        prepared["start"],
        prepared["packs"],
        folder / name,
        parallel,
        **settings,
    )


@pytest.fixture(scope="module")
def one_process(prepared: dict[str, Path]) -> list[dict[str, Any]]:
    return train(context_file(prepared, "one", Parallel()))


def check_equal(lines: list[dict[str, Any]], reference: list[dict[str, Any]], loss: float, grad_norm: float) -> None:
    assert [line["step"] for line in lines] == [line["step"] for line in reference]
    for line, expected in zip(lines, reference, strict=True):
        assert line["tokens"] == expected["tokens"]
        assert line["lr"] == expected["lr"]
        assert line["loss"] == pytest.approx(expected["loss"], abs=loss)
        assert line["grad_norm"] == pytest.approx(expected["grad_norm"], rel=grad_norm)


def final_tensors(prepared: dict[str, Path], name: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    target = prepared["folder"] / f"{name}-hf"
    export_hf(prepared["folder"] / name / "checkpoint", prepared["model"], target)
    return load_file(target / "model.safetensors")


def test_killed_training_goes_on_bit_identically(prepared: dict[str, Path]) -> None:
    """kill -9 at random moments, between and inside saves."""
    steps, chance = 60, random.Random(0)
    calm = train(context_file(prepared, "calm", Parallel(data=2), steps=steps, save_every=5))
    context = context_file(prepared, "killed", Parallel(data=2), steps=steps, save_every=5)
    log = prepared["folder"] / "killed" / "steps.jsonl"
    kills = 0
    for target in sorted(chance.sample(range(1, steps), 4)):
        process = start_training(context)
        while process.poll() is None and (not log.is_file() or len(log.read_text().splitlines()) < target):
            time.sleep(0.002)
        time.sleep(chance.random() * 0.1)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate()
    lines = train(context)
    assert kills >= 3
    strip = lambda rows: [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows]  # noqa: E731
    assert strip(lines) == strip(calm)
    before, after = final_tensors(prepared, "calm"), final_tensors(prepared, "killed")
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_damaged_checkpoint_is_passed_over(prepared: dict[str, Path], one_process: list[dict[str, Any]]) -> None:
    context = context_file(prepared, "damaged", Parallel(), save_every=4)
    folder = prepared["folder"] / "damaged"
    process = start_training(context)
    while process.poll() is None and not (folder / "step-0000012").is_dir():
        time.sleep(0.002)
    process.kill()
    process.communicate()
    newest = sorted(folder.glob("step-*"))[-1]
    for path in newest.glob("*.distcp"):
        os.truncate(path, path.stat().st_size // 2)
    check_equal(train(context), one_process, loss=0, grad_norm=0)


def test_a_stage_killed_before_its_mark_is_not_trained_again(prepared: dict[str, Path]) -> None:
    """The final weights are there, COMPLETE is not: the same weights and log stay."""
    context = context_file(prepared, "unmarked", Parallel())
    lines = train(context)
    weights = final_tensors(prepared, "unmarked")
    shutil.rmtree(prepared["folder"] / "unmarked-hf")
    assert train(context) == lines
    again = final_tensors(prepared, "unmarked")
    assert all(torch.equal(weights[name], again[name]) for name in weights)


@pytest.mark.parametrize("second", [Parallel(), Parallel(tensor=2)], ids=["dp2-to-dp1", "dp2-to-tp2"])
def test_resume_in_another_layout(
    prepared: dict[str, Path], one_process: list[dict[str, Any]], second: Parallel, request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.id
    context = context_file(prepared, name, Parallel(data=2), save_every=8)
    process = start_training(context)
    folder = prepared["folder"] / name
    while process.poll() is None and not (folder / "step-0000008").is_dir():
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert (folder / "step-0000008").is_dir()
    lines = train(context_file(prepared, name, second, save_every=8))
    check_equal(lines, one_process, loss=1e-5, grad_norm=1e-4)


def test_full_disk_in_a_save_loses_nothing(
    prepared: dict[str, Path], one_process: list[dict[str, Any]], small_disk: Callable[[str], Path]
) -> None:
    """One message and no half checkpoint; with room made, the same command goes on from the save before."""
    disk = small_disk("16m")
    context = training_context(
        disk / "context.json",
        prepared["model"],
        prepared["start"],
        prepared["packs"],
        disk / "train",
        Parallel(),
        save_every=4,
    )
    ballast = disk / "ballast"
    ballast.write_bytes(bytes(12_700_000))
    process = start_training(context)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "the disk is full" in errors.strip().splitlines()[-1], errors[-4000:]
    assert [path.name for path in (disk / "train").iterdir() if path.is_dir()] == ["step-0000004"]
    ballast.unlink()
    check_equal(train(context), one_process, loss=0, grad_norm=0)


def test_bf16_learns(prepared: dict[str, Path], one_process: list[dict[str, Any]]) -> None:
    lines = train(context_file(prepared, "bf16", Parallel(), precision="bf16"))
    assert lines[-1]["loss"] == pytest.approx(one_process[-1]["loss"], abs=0.05)


def test_wrong_number_of_ranks() -> None:
    with pytest.raises(UserError, match="needs 2 ranks, but 1 were started"), process_groups(Parallel(data=2), 0):
        pass


def test_checkpoint_of_another_model(prepared: dict[str, Path], tmp_path: Path) -> None:
    other = tiny_model(tmp_path / "other", hidden_size=64)
    with pytest.raises(UserError, match="can't be loaded as a checkpoint of this model"):
        export_hf(prepared["start"] / "checkpoint", other, tmp_path / "out")


def test_export_to_an_existing_folder_is_refused(prepared: dict[str, Path], tmp_path: Path) -> None:
    command = [sys.executable, "tools/convert.py", "export", "--megatron", str(prepared["start"] / "checkpoint")]
    command += ["--like", str(prepared["model"]), "--hf", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "exists already" in done.stderr
    assert list(tmp_path.iterdir()) == []

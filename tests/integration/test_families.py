"""Models of every family against transformers, and to Megatron's format and back."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from conversion.convert import export_hf, import_hf
from dasd_megatron.config.training import ParallelConfig
from dasd_megatron.megatron_model.build_model import ModelOptions, build_model, named_weights
from dasd_megatron.megatron_model.micro_batch import Pack
from dasd_megatron.megatron_model.process_groups import process_groups
from dasd_megatron.megatron_model.weights import load_weights
from dasd_megatron.models.hf_model import HFModel
from dasd_megatron.utils.errors import UserError
from tests.conftest import ROOT, TOY
from tests.helpers.logits import aligned_batch, logits_and_loss
from tests.helpers.tiny_models import CONTEXT, tiny_model


def random_pack(lengths: list[int], vocabulary: int, seed: int = 0) -> Pack:
    generator = np.random.default_rng(seed)
    ids = generator.integers(0, vocabulary, sum(lengths)).astype(np.int32)
    return Pack(ids, generator.random(sum(lengths)) < 0.7, lengths)


YARN = {"rope_type": "yarn", "rope_theta": 5000.0, "factor": 8.0, "original_max_position_embeddings": 64}
MODELS: dict[str, dict[str, Any]] = {
    "qwen3": {},
    "qwen3-tied": {"tied": True},
    "qwen3-yarn": {"rope_parameters": YARN},
    "qwen3-linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 5000.0, "factor": 4.0}},
    "qwen3_moe": {},
    "qwen3_moe-not-renormalised": {"norm_topk_prob": False},
    "qwen2": {},
    "qwen2-tied": {"tied": True},
    "llama": {},
    "gpt_oss": {},
    "gpt_oss-other-layers": {
        "layer_types": ["full_attention", "full_attention", "sliding_attention", "full_attention"],
        "sliding_window": 1,
        "tied": True,
    },
}


@pytest.fixture(params=["teacher", "student", *MODELS])
def model_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param in ("teacher", "student"):
        return TOY / request.param
    return tiny_model(tmp_path / "hf", request.param.split("-")[0], **MODELS[request.param])


LENGTHS = [3, 40, 1, 17, 5, 160]


def test_logits_loss_and_gradients_equal_transformers(model_folder: Path, tmp_path: Path) -> None:
    """fp32; a pack against transformers on each of its documents alone."""
    from transformers import AutoModelForCausalLM

    reference = AutoModelForCausalLM.from_pretrained(
        str(model_folder), dtype=torch.float32, attn_implementation="eager"
    )
    reference.model.embed_tokens.padding_idx = None  # transformers gives the pad token's embedding no gradient
    hf = HFModel(model_folder)
    import_hf(model_folder, tmp_path / "megatron")
    batch = aligned_batch(random_pack(LENGTHS, hf.shape.vocabulary), 16)
    with process_groups(ParallelConfig(), 0):
        chunks = build_model(hf, ParallelConfig(), ModelOptions(moe_aux_loss_coeff=0.0), CONTEXT)
        load_weights(chunks, tmp_path / "megatron")
        logits, loss = logits_and_loss(chunks[0], batch, hf.shape.vocabulary)
        loss.backward()
        gradients = {name: parameter.grad for name, parameter in named_weights(chunks)}

    losses = torch.zeros(())
    for start, end in pairwise([0, *np.cumsum(LENGTHS).tolist()]):
        expected = reference(input_ids=batch.input_ids[:, start:end]).logits[0]
        # Different order of summation in attention and MLP, at fp32 resolution.
        torch.testing.assert_close(logits[start:end].detach(), expected.detach(), atol=1e-4, rtol=0)
        token_losses = torch.nn.functional.cross_entropy(expected, batch.labels[0, start:end], reduction="none")
        is_target = torch.isin(torch.arange(start, end), batch.targets)
        losses = losses + token_losses[is_target].sum()
    expected_loss = losses / len(batch.targets)
    expected_loss.backward()
    torch.testing.assert_close(loss, expected_loss, atol=0, rtol=1e-5)

    theirs = hf_gradients(reference)
    unseen = set(theirs)
    squares = {"difference": 0.0, "all": 0.0}
    for part in hf.family.parts(hf.shape):
        for hf_name, ours in zip(part.hf, part.entry.to_hf(gradients.pop(part.name), hf.shape), strict=True):
            unseen.discard(hf_name)
            expected = theirs[hf_name][part.expert] if part.stacked else theirs[hf_name]
            squares["difference"] += float((ours - expected).square().sum())
            squares["all"] += float(expected.square().sum())
            # A gradient that is zero but for rounding has no relative error.
            assert float((ours - expected).norm()) < 1e-5 * max(float(expected.norm()), 1e-3), hf_name
    assert not gradients
    assert not unseen
    assert (squares["difference"] / squares["all"]) ** 0.5 < 1e-5


def hf_gradients(model: Any) -> dict[str, torch.Tensor]:
    """By the names in files: transformers puts the experts of a layer into one parameter, gpt-oss's files do so, too."""
    if model.config.model_type == "gpt_oss":
        return {name: parameter.grad for name, parameter in model.named_parameters()}
    gradients: dict[str, torch.Tensor] = {}
    for name, parameter in model.named_parameters():
        prefix, _, last = name.rpartition(".")
        if last == "gate_up_proj":
            for expert, gradient in enumerate(parameter.grad):
                gate, up = gradient.chunk(2)
                gradients |= {f"{prefix}.{expert}.gate_proj.weight": gate, f"{prefix}.{expert}.up_proj.weight": up}
        elif last == "down_proj" and parameter.ndim == 3:
            gradients |= {f"{prefix}.{expert}.down_proj.weight": grad for expert, grad in enumerate(parameter.grad)}
        else:
            gradients[name] = parameter.grad
    return gradients


def test_checkpoint_of_another_model(tmp_path: Path) -> None:
    import_hf(tiny_model(tmp_path / "hf"), tmp_path / "checkpoint")
    other = tiny_model(tmp_path / "other", hidden_size=64)
    with pytest.raises(
        UserError, match="is of another model than the checkpoint: hidden is 64, but 48 in the checkpoint"
    ):
        export_hf(tmp_path / "checkpoint", tmp_path / "out", like=other)


def test_export_to_an_existing_folder_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "tools/convert.py", "export", "--megatron", "checkpoint"]
    command += ["--like", str(TOY / "student"), "--hf", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "exists already" in done.stderr
    assert list(tmp_path.iterdir()) == []

"""Transformer Engine's layers in bf16 against the CPU reference in fp32, from one checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dasd_megatron.config.training import ParallelConfig
from dasd_megatron.models.hf_model import HFModel
from dasd_megatron.models.pack_padding import Alignment, document_slots
from tests.conftest import ROOT
from tests.helpers.tiny_models import tiny_model

LENGTHS = [37, 400, 1, 170, 59, 600]
# Sizes that FP8 and cuDNN's attention take.
SIZES = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 1024,
    "max_position_embeddings": 4096,
}


def sizes_of(family: str) -> dict[str, Any]:
    """Fields of a tiny model; families without head_dim derive it."""
    fields = dict(SIZES)
    if family in ("qwen2", "llama"):
        del fields["head_dim"]
    if family == "qwen3_moe":
        fields["moe_intermediate_size"] = 128
    if family == "gpt_oss":
        fields |= {"intermediate_size": 128, "swiglu_limit": 7.0}
    return fields


@pytest.fixture(scope="module", params=["qwen3", "qwen3_moe", "qwen2", "llama", "gpt_oss"])
def reference(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The model, its checkpoint written by the CPU reference, and what that computes."""
    folder = tmp_path_factory.mktemp(request.param)
    model = tiny_model(folder / "hf", request.param, **sizes_of(request.param))
    command = [
        sys.executable,
        "-m",
        "tests.helpers.reference_rank",
        str(model),
        str(folder / "start"),
        str(folder / "out.pt"),
    ]
    subprocess.run([*command, json.dumps(LENGTHS)], cwd=ROOT, check=True)
    return {"model": model, "checkpoint": folder / "start", **torch.load(folder / "out.pt", weights_only=True)}


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    actual, expected = actual.float().cpu(), expected.float().cpu()
    return float((actual - expected).norm() / expected.norm())


def test_logits_loss_and_gradients(reference: dict[str, Any], one_rank: None) -> None:
    """bf16 keeps 8 bits: a relative error of some per mille a product, a few per cent after the layers."""
    from benchmarks.models import random_pack
    from dasd_megatron.megatron_model.build_model import ModelOptions, build_model, named_weights
    from dasd_megatron.megatron_model.weights import load_weights
    from tests.helpers.logits import aligned_batch, logits_and_loss

    hf = HFModel(reference["model"])
    chunks = build_model(hf, ParallelConfig(), ModelOptions(torch.bfloat16, moe_aux_loss_coeff=None), sum(LENGTHS))
    load_weights(chunks, reference["checkpoint"])  # written by the CPU reference
    batch = aligned_batch(random_pack(LENGTHS, hf.shape.vocabulary), 16).to(torch.device("cuda"))
    logits, loss = logits_and_loss(chunks[0], batch, hf.shape.vocabulary)
    loss.backward()
    assert relative(logits, reference["logits"]) < 0.03
    assert float(loss) == pytest.approx(float(reference["loss"]), rel=0.01)
    for name, parameter in named_weights(chunks):
        expected = reference["gradients"][name]
        cosine = torch.nn.functional.cosine_similarity(parameter.grad.float().cpu().flatten(), expected.flatten(), 0)
        assert float(cosine) > 0.99, name


def test_a_checkpoint_of_the_gpu_loads_on_the_cpu(reference: dict[str, Any], one_rank: None, tmp_path: Path) -> None:
    """Written from Transformer Engine's layers, exported where there is no GPU: the weights rounded to bf16."""
    from safetensors.torch import load_file

    from dasd_megatron.megatron_model.build_model import ModelOptions, build_model
    from dasd_megatron.megatron_model.weights import load_weights
    from dasd_megatron.training.checkpoint.checkpoints import save_weights

    hf = HFModel(reference["model"])
    chunks = build_model(hf, ParallelConfig(), ModelOptions(torch.bfloat16), sum(LENGTHS))
    load_weights(chunks, reference["checkpoint"])
    save_weights(chunks, hf, tmp_path / "gpu")
    code = "import sys; from pathlib import Path; from conversion.convert import export_hf; export_hf(*map(Path, sys.argv[1:]))"
    arguments = [str(tmp_path / "gpu"), str(tmp_path / "hf")]
    subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, check=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    )
    before, after = (
        load_file(reference["model"] / "model.safetensors"),
        load_file(tmp_path / "hf" / "model.safetensors"),
    )
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor.bfloat16(), after[name].bfloat16()), name


def test_padding_and_neighbours_change_nothing(reference: dict[str, Any], one_rank: None) -> None:
    """THD with a long tail of padding, and another neighbour: a document's logits stay within rounding."""
    from benchmarks.models import random_pack
    from dasd_megatron.megatron_model.build_model import ModelOptions, build_model
    from dasd_megatron.megatron_model.micro_batch import Pack
    from dasd_megatron.megatron_model.weights import load_weights
    from tests.helpers.logits import aligned_batch, logits_and_loss

    hf = HFModel(reference["model"])
    chunks = build_model(hf, ParallelConfig(), ModelOptions(torch.bfloat16), 4096)
    load_weights(chunks, reference["checkpoint"])
    pack = random_pack(LENGTHS, hf.shape.vocabulary)
    changed = pack.ids.copy()
    first, end = LENGTHS[0], LENGTHS[0] + LENGTHS[1]
    changed[first:end] = (changed[first:end] + 1) % hf.shape.vocabulary

    def logits(pack: Pack, multiple: int) -> torch.Tensor:
        with torch.no_grad():
            return logits_and_loss(chunks[0], aligned_batch(pack, multiple).to(torch.device("cuda")), 1024)[0]

    plain, padded, other = logits(pack, 1), logits(pack, 2048), logits(Pack(changed, pack.targets, pack.lengths), 1)
    assert relative(padded, plain) < 0.01
    rest = torch.cat([other[:first] - plain[:first], other[end:] - plain[end:]])
    assert float(rest.norm() / plain.norm()) < 0.01
    assert relative(other[first:end], plain[first:end]) > 0.1


@pytest.mark.parametrize("ranks", [2, 4])
def test_context_parallel_order_is_transformer_engines(ranks: int) -> None:
    import transformer_engine_torch

    from dasd_megatron.megatron_model.packed_documents import rank_tokens

    slots = document_slots(LENGTHS, Alignment(2 * ranks, 2 * ranks))
    cu_seqlens = torch.tensor([0, *slots]).cumsum(0).to(device="cuda", dtype=torch.int32)
    for rank in range(ranks):
        theirs = transformer_engine_torch.thd_get_partitioned_indices(cu_seqlens, sum(slots), ranks, rank)
        assert torch.equal(theirs.long().cpu(), rank_tokens(slots, ranks, rank))

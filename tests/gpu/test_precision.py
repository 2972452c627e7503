"""FP8 against bf16 over 50 steps, and resumed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.models import qwen3, random_model, random_pack
from dasd_megatron.config.gpu_specs import CAPABILITY
from dasd_megatron.config.training import MemoryConfig, ParallelConfig, TrainingConfig
from dasd_megatron.models.hf_model import HFModel

STEPS = 50
FIELDS = {
    "vocab_size": 1024,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
}
LENGTHS = [300, 1200, 40, 508]
RECIPES = [
    ("delayed", 0),
    ("tensorwise", 0),
    ("tensorwise", 1),
    ("blockwise", 0),
    ("mxfp8", 0),
]


def needs(fp8: str) -> None:
    capability, generation = CAPABILITY[fp8]
    if torch.cuda.get_device_capability() < capability:
        pytest.skip(f"{fp8} needs {generation}")


def make_trainer(hf: HFModel, fp8: str | None, bf16_layers: int = 0):  # type: ignore[no-untyped-def]
    from dasd_megatron.megatron_model.build_model import ModelOptions
    from dasd_megatron.training.trainer import Trainer

    training = TrainingConfig(fp8=fp8, fp8_bf16_layers=bf16_layers, global_batch=1)
    chunks = random_model(hf, ModelOptions.of(training, MemoryConfig()), sum(LENGTHS))
    return Trainer(chunks, hf, ParallelConfig(), training, MemoryConfig()), chunks


def losses(trainer, first: int, last: int) -> list[float]:  # type: ignore[no-untyped-def]
    """Learns eight packs by heart, in turn."""
    return [trainer.step([random_pack(LENGTHS, 1024, step % 8)], 1e-3).read().loss for step in range(first, last)]


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> HFModel:
    return qwen3(tmp_path_factory.mktemp("qwen3"), **FIELDS)


@pytest.mark.parametrize(("fp8", "bf16_layers"), RECIPES)
def test_fp8_follows_bf16(hf: HFModel, one_rank: None, fp8: str, bf16_layers: int) -> None:
    """The curves stay together within 3% of the loss; both learn."""
    needs(fp8)
    trainer, _ = make_trainer(hf, None)
    expected = losses(trainer, 0, STEPS)
    trainer, _ = make_trainer(hf, fp8, bf16_layers)
    found = losses(trainer, 0, STEPS)
    assert found[-1] < 0.9 * found[0]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours == pytest.approx(theirs, rel=0.03)


@pytest.mark.parametrize("fp8", ["delayed", "tensorwise", "blockwise", "mxfp8"])
def test_fp8_goes_on_from_a_checkpoint(hf: HFModel, one_rank: None, fp8: str, tmp_path: Path) -> None:
    """Scales and their history are saved: the loss continues where it was, instead of NaN or a jump."""
    from dasd_megatron.training.checkpoint.checkpoints import StepCheckpoints
    from dasd_megatron.training.train_step_config import TrainConfig

    needs(fp8)
    training = TrainingConfig(keep_checkpoints=1)
    config = TrainConfig(training=training, isolate_documents=True, seed=0)
    trainer, chunks = make_trainer(hf, fp8)
    losses(trainer, 0, 20)
    checkpoints = StepCheckpoints(chunks, hf, trainer.optimizer, tmp_path, config)
    checkpoints.save(20)
    expected = losses(trainer, 20, 25)  # while the checkpoint is written
    checkpoints.wait()
    trainer, chunks = make_trainer(hf, fp8)
    assert StepCheckpoints(chunks, hf, trainer.optimizer, tmp_path, config).load_latest() == 20
    for ours, theirs in zip(losses(trainer, 20, 25), expected, strict=True):
        assert ours == pytest.approx(theirs, rel=2e-3)


def test_full_recompute_and_offloaded_optimizer_change_nothing(hf: HFModel, one_rank: None) -> None:
    from dasd_megatron.megatron_model.build_model import ModelOptions
    from dasd_megatron.training.trainer import Trainer

    curves = []
    for memory in (
        MemoryConfig(),
        MemoryConfig(recompute="selective"),
        MemoryConfig(recompute="full"),
        MemoryConfig(offload_optimizer=1.0),
    ):
        training = TrainingConfig(global_batch=1)
        chunks = random_model(hf, ModelOptions.of(training, memory), sum(LENGTHS))
        curves.append(losses(Trainer(chunks, hf, ParallelConfig(), training, memory), 0, 10))
    for curve in curves[1:]:
        assert curve == pytest.approx(curves[0], rel=2e-3)

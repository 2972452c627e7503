"""What the trainer refuses before it starts, because of the machine."""

from __future__ import annotations

import pytest

from dasd_megatron.config.gpu_specs import fp8_problem, precision_problem
from dasd_megatron.config.training import ParallelConfig, TrainingConfig
from dasd_megatron.megatron_model.process_groups import check_gpus, process_groups
from dasd_megatron.utils.errors import UserError


@pytest.mark.parametrize(
    ("fp8", "capability", "transformer_engine", "problem"),
    [
        (
            "delayed",
            (8, 0),
            True,
            "needs a GPU of compute capability 8.9 (Ada or Hopper) or newer, and this one's is 8.0",
        ),
        (
            "blockwise",
            (8, 9),
            True,
            "needs a GPU of compute capability 9.0 (Hopper) or newer, and this one's is 8.9",
        ),
        (
            "mxfp8",
            (9, 0),
            True,
            "needs a GPU of compute capability 10.0 (Blackwell) or newer, and this one's is 9.0",
        ),
        ("tensorwise", (9, 0), False, "needs Transformer Engine, which isn't installed"),
        ("tensorwise", (9, 0), True, None),
        ("mxfp8", (10, 0), True, None),
    ],
)
def test_fp8(fp8: str, capability: tuple[int, int], transformer_engine: bool, problem: str | None) -> None:
    assert fp8_problem(fp8, capability, transformer_engine) == problem


def test_precision() -> None:
    """Attention is fused in bf16 alone, and long packs need it fused."""
    found = [precision_problem(TrainingConfig(precision="fp32"), length, (9, 0)) for length in (4096, 4097)]
    assert found[0] is None
    assert found[1] is not None
    assert found[1].endswith("packs of 4,097 tokens need it (more than 4,096); set training.precision=bf16")
    assert precision_problem(TrainingConfig(fp8="tensorwise"), 65_536, (9, 0)) is None
    assert "training.fp8=mxfp8 needs a GPU of" in str(precision_problem(TrainingConfig(fp8="mxfp8"), 4096, (9, 0)))


def test_more_ranks_than_gpus() -> None:
    check_gpus(8, 8, ParallelConfig(data=8))
    with pytest.raises(UserError, match=r"parallel \(data=8\): 8 ranks were started on a machine with 4 GPUs"):
        check_gpus(8, 4, ParallelConfig(data=8))


def test_wrong_number_of_ranks() -> None:
    with pytest.raises(UserError, match="needs 2 ranks, but 1 were started"), process_groups(ParallelConfig(data=2), 0):
        pass

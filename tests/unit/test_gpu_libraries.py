"""What a GPU run refuses to start with: libraries that are too old, and a driver that torch can't use."""

from __future__ import annotations

from pathlib import Path

import pytest

from dasd_megatron.training.gpu_libraries import check_gpu_libraries, cudnn_version, driver_problem, library_problem

PROC = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\nGCC version: gcc 12\n"


def test_cudnn_tells_its_version_as_a_number() -> None:
    assert cudnn_version(92601) == (9, 26, 1)


@pytest.mark.parametrize(
    ("transformer_engine", "cudnn", "sinks", "problem"),
    [
        ((2, 20, 2), (9, 26, 0), True, None),
        ((2, 20, 2), (9, 25, 1), False, None),
        ((2, 20, 2), (9, 25, 1), True, "cuDNN 9.25.1 is too old: 9.26 or later is needed for attention sinks"),
        ((2, 20, 2), (9, 2, 1), False, "cuDNN 9.2.1 is too old: 9.3 or later is needed;"),
        ((2, 9, 0), (9, 26, 0), False, "Transformer Engine 2.9.0 is too old: 2.20 or later"),
    ],
)
def test_old_libraries(
    transformer_engine: tuple[int, ...], cudnn: tuple[int, ...], sinks: bool, problem: str | None
) -> None:
    found = library_problem(transformer_engine, cudnn, sinks)
    assert found is None if problem is None else found is not None and problem in found


def test_a_driver_that_torch_cannot_use_is_no_cpu(tmp_path: Path) -> None:
    """A node whose GPUs are lost would train on the CPU, for ever."""
    driver = tmp_path / "version"
    assert driver_problem(driver, "13.0", {}) is None  # no driver
    driver.write_text(PROC)
    found = driver_problem(driver, "13.0", {})
    assert found is not None
    assert "driver 570.86.15, but torch, built for CUDA 13.0, finds no GPU" in found
    assert driver_problem(driver, None, {}) is None  # a torch for CPUs
    assert driver_problem(driver, "13.0", {"CUDA_VISIBLE_DEVICES": ""}) is None  # asked for
    assert driver_problem(driver, "13.0", {"CUDA_VISIBLE_DEVICES": "0,1"}) is not None


def test_this_machine() -> None:
    check_gpu_libraries(sinks=True)

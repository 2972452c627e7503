"""How many engine processes a machine runs, and which GPUs each of them sees."""

from __future__ import annotations

import pytest

from dasd_megatron.runtime.replicas import gpu_shares, replica_count, start_replicas, visible_gpus
from dasd_megatron.steps.step import Replicas
from dasd_megatron.utils.errors import UserError

ENGINE = Replicas(count=None, gpus_each=2)


def test_a_replica_for_each_share_of_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,5,6,7,8,9")
    assert replica_count(ENGINE) == 4
    assert replica_count(Replicas(count=3, gpus_each=2)) == 3
    assert [share["CUDA_VISIBLE_DEVICES"] for share in gpu_shares(4, 2)] == ["0,1", "2,5", "6,7", "8,9"]
    with pytest.raises(UserError, match=r"launch\.replicas=5 engines of 2 GPUs .* need 10 GPUs, and 8 are visible"):
        gpu_shares(5, 2)


def test_without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []
    assert replica_count(ENGINE) == 1
    assert gpu_shares(3, 2) == [{}, {}, {}]


def test_each_process_gets_its_own(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    command = ["-c", "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"]
    assert [process.wait() for process in start_replicas(2, 2, command)] == [0, 0]
    assert sorted(capfd.readouterr().out.split()) == ["4,5", "6,7"]

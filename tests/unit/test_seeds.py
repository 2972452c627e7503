"""Seeds of samples."""

from __future__ import annotations

from dasd_megatron.sampling.seeds import sample_seed


def test_seeds_differ_and_repeat() -> None:
    seeds = {
        sample_seed(1, temperature, f"u{n}", index)
        for temperature in (0.6, 1.0)
        for n in range(50)
        for index in range(4)
    }
    assert len(seeds) == 400
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert sample_seed(1, "a", 0) == sample_seed(1, "a", 0)

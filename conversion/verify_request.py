"""What a verification asks of the ranks that run Megatron's side, as a file between processes."""

from __future__ import annotations

from pathlib import Path

from conversion.probes import Probe
from dasd_megatron.config.base import Config
from dasd_megatron.config.training import ParallelConfig


class VerifyRequest(Config):
    """`config`: folder of the model's config; `reference`: what transformers computed, safetensors; `result`: the file that
    rank 0 writes the differences to."""

    config: Path
    megatron: Path
    parallel: ParallelConfig
    reference: Path
    probes: list[Probe]
    result: Path

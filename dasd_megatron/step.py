"""What a step is given when it runs, and the two shapes that a step can have.

A step is a plain function of a config, input artifacts and an output folder. It knows neither who calls it nor where it
runs. Most steps map shards of an input, each on its own (`ShardedStep`); the others are one function of the context.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from dasd_megatron.artifacts.artifact import Artifact, ArtifactWriter


@dataclass(frozen=True)
class StepContext:
    """Config, inputs and output of one step; `execution` holds what shapes no result."""

    name: str
    config: Mapping[str, Any]
    inputs: Mapping[str, Path]
    output: ArtifactWriter
    execution: Mapping[str, Any]

    def artifact(self, name: str) -> Artifact:
        """A finished input artifact."""
        return Artifact(self.inputs[name])


# One function of the context, which returns facts for the manifest.
StepFunction = Callable[[StepContext], dict[str, Any]]


class ShardedStep(Protocol):
    """Maps numbered shards of its input to tables, each shard on its own, so that replicas can share them out."""

    # The table whose shard says that the work on that shard is done; written after the others.
    table: str

    def shard_count(self, context: StepContext) -> int:
        """Number of shards; cheap."""

    def open(self, context: StepContext) -> Callable[[int], Mapping[str, pa.Table]]:
        """Loads what the work needs, once a process, and returns the work: shard number -> tables by name."""

    def summarize(self, context: StepContext) -> dict[str, Any]:
        """Facts for the manifest, from the shards on disk."""

"""How many cores the steps of a study take, and for how long."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.runtime.replicas import cpu_cores, replica_count, visible_gpus
from dasd_megatron.steps.step import Ranks, Replicas, Step


def core_count() -> int:
    """How many steps of one core may run at once: on a machine with GPUs, which engines and ranks share, one."""
    return 1 if visible_gpus() else cpu_cores()


def cores_of(step: Step, cores: int) -> int:
    """How many cores a step takes, at most all."""
    processes, count = step.processes, 1
    if isinstance(processes, Ranks):
        count = processes.world_size
    elif isinstance(processes, Replicas):
        count = replica_count(processes)
    return min(cores, count * step.config.threads)


def seconds_by_kind(steps: Iterable[Step]) -> dict[str, list[float]]:
    """How long those of `steps` that are done took, by kind."""
    found: dict[str, list[float]] = {}
    for step in steps:
        if step.done:
            found.setdefault(step.kind.name, []).append(Artifact(step.folder).manifest["seconds"])
    return found


def seconds_of(known: Mapping[str, list[float]], steps: Sequence[Step], cores: int) -> float | None:
    """How long `steps` take, by those of the same kind that are done; None where no step of a kind is."""
    total = 0.0
    for step in steps:
        took = known.get(step.kind.name)
        if not took:
            return None
        total += sum(took) / len(took) * cores_of(step, cores) / cores
    return total


def clock(seconds: float) -> str:
    """Hours and minutes."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"

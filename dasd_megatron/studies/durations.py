"""How long the steps of a study take, by those that are done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from dasd_megatron.artifacts.artifact import Artifact
from dasd_megatron.steps.step import Step


def seconds_by_kind(steps: Iterable[Step]) -> dict[str, list[float]]:
    """How long those of `steps` that are done took, by kind."""
    found: dict[str, list[float]] = {}
    for step in steps:
        if step.done:
            found.setdefault(step.kind.name, []).append(Artifact(step.folder).manifest["seconds"])
    return found


def seconds_of(known: Mapping[str, list[float]], shares: Iterable[tuple[Step, float]]) -> float | None:
    """How long steps take together, each of which takes a share of the machine; None where no step of a kind is done."""
    total = 0.0
    for step, share in shares:
        took = known.get(step.kind.name)
        if not took:
            return None
        total += sum(took) / len(took) * share
    return total


def clock(seconds: float) -> str:
    """Hours and minutes."""
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"

"""Which engine a step runs. No torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from dasd_megatron.config.sampling import EngineRole
from dasd_megatron.steps.step import Step


def role_of(step: Step) -> EngineRole | None:
    """Whose engine a step runs; None for a step without one."""
    match step.kind.name:
        case "sample" | "continue" | "turns":
            return "teacher"
        case "rollout":
            return "student"
        case "score":
            return "scorer"
        case "answer":
            return "teacher" if step.config.is_teacher else "student"  # type: ignore[attr-defined]
        case "probe":
            role: EngineRole = step.config.role  # type: ignore[attr-defined]
            return role
    return None


def engines_of(steps: Mapping[str, Step], count: Callable[[Step], int]) -> dict[EngineRole, int]:
    """How many engines the steps of each role have side by side; `count`: a step's processes."""
    found: dict[EngineRole, int] = {}
    for step in steps.values():
        role = role_of(step)
        if role is not None:
            found[role] = max(found.get(role, 0), count(step))
    return found

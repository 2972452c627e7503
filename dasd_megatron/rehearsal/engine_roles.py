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


def widest_steps(steps: Mapping[str, Step], processes: Callable[[Step], int]) -> dict[EngineRole, Step]:
    """Of each role the step that has most engines side by side."""
    found: dict[EngineRole, Step] = {}
    for step in steps.values():
        role = role_of(step)
        if role is not None and (role not in found or processes(step) > processes(found[role])):
            found[role] = step
    return found

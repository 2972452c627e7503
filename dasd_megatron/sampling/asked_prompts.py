"""Which prompts a stage's data is made from: `stages.*.prompts`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from dasd_megatron.steps.step import StepContext
from dasd_megatron.utils.errors import UserError


def asked_prompts(context: StepContext[Any], limit: int | Mapping[str, int] | None) -> list[dict[str, Any]]:
    """The first of the step's prompts, in all or of each domain. Raises UserError where there are too few of one."""
    prompts: list[dict[str, Any]] = context.artifact("prompts").read("prompts").to_pylist()
    return _of_domains(context.name, prompts, limit) if isinstance(limit, Mapping) else prompts[:limit]


def _of_domains(step: str, prompts: list[dict[str, Any]], wanted: Mapping[str, int]) -> list[dict[str, Any]]:
    """The first prompts of each domain, as many as are wanted, in their order. Raises UserError where there are too few."""
    found = Counter(prompt["domain"] for prompt in prompts)
    for domain, count in wanted.items():
        if found[domain] < count:
            there = ", ".join(f"{name or 'none'} {number}" for name, number in found.most_common())
            raise UserError(
                f"{step}: the stage's prompts.{domain}={count}, but its problems have {found[domain]} of that domain (it has: "
                f"{there}); lower the number, or fix the name"
            )
    left, chosen = dict(wanted), []
    for prompt in prompts:
        if left.get(prompt["domain"], 0):
            left[prompt["domain"]] -= 1
            chosen.append(prompt)
    return chosen

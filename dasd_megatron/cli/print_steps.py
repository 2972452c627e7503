"""The dry run on this machine: which steps there are, and which are done."""

from __future__ import annotations

from collections.abc import Sequence

from dasd_megatron.pipeline.graph import REPORT
from dasd_megatron.steps.step import Step


def print_steps(steps: Sequence[Step]) -> None:
    """One line a step: whether it is done, what it reads, where its artifact is."""
    width = max(len(step.name) for step in steps)
    for step in steps:
        inputs = ", ".join(source.name for source in step.inputs.values()) if step.name != REPORT else "every step"
        print(f"{'done' if step.done else 'to do':5}  {step.name:{width}}  <- {inputs}")
        print(f"{'':5}  {'':{width}}     {step.folder}")
    print(f"{sum(step.done for step in steps)} of {len(steps)} steps are done")

"""The dry run of a study: how many steps there are, how many the arms have in common, and how long those left take."""

from __future__ import annotations

from dasd_megatron.studies.durations import clock, seconds_by_kind, seconds_of
from dasd_megatron.studies.machine_shares import Machine
from dasd_megatron.studies.study import Study, steps_of
from dasd_megatron.utils.text_table import text_table


def print_study(study: Study) -> None:
    """A line for each arm, then the sums."""
    seen: set[str] = set()
    rows = [["arm", "steps", "not of an arm above", "done"]]
    for arm in study.config.arms:
        own = [step for run in study.of_arm(arm) for step in run.steps.values()]
        new = {step.folder.name for step in own} - seen
        seen |= new
        rows.append([arm, f"{len(own):,}", f"{len(new):,}", f"{sum(step.done for step in own):,}"])
    print("\n".join(text_table(rows)))
    steps = [step for step, _ in steps_of(study).values()]
    left = [step for step in steps if not step.done]
    seeds = len(study.config.seeds)
    runs = f"{len(study.config.arms)} arms with {seeds} seed{'s' if seeds > 1 else ''}"
    print(f"\n{runs}: {len(steps):,} different steps, {len(steps) - len(left):,} of them done")
    machine = Machine()
    seconds = seconds_of(seconds_by_kind(steps), ((step, machine.part(step)) for step in left))
    if left and seconds is not None:
        print(f"the others take about {clock(seconds)} on this machine, by those of the same kind that are done")
    elif left:
        print("how long they take on this machine is known once a step of each kind is done")

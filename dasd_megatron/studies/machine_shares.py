"""Shares of this machine's cores and GPUs that steps side by side get."""

from __future__ import annotations

from dataclasses import dataclass, field

from dasd_megatron.runtime.replicas import usable_cores, visible_gpus
from dasd_megatron.steps.step import Ranks, Replicas, Step


@dataclass(frozen=True)
class Share:
    """What a step has to itself."""

    cores: frozenset[int]
    gpus: tuple[str, ...]


@dataclass
class Machine:
    """What isn't taken.

    Attributes:
        all_cores, all_gpus: of the machine, as far as this process may use it.
    """

    all_cores: frozenset[int] = field(default_factory=usable_cores)
    all_gpus: tuple[str, ...] = field(default_factory=lambda: tuple(visible_gpus()))

    def __post_init__(self) -> None:
        self._cores, self._gpus = set(self.all_cores), list(self.all_gpus)

    def take(self, step: Step) -> Share | None:
        """A share for a step; None where too little is free."""
        cores, gpus = self.needs(step)
        if len(self._cores) < cores or len(self._gpus) < gpus:
            return None
        share = Share(frozenset(sorted(self._cores)[:cores]), tuple(self._gpus[:gpus]))
        self._cores -= share.cores
        del self._gpus[:gpus]
        return share

    def give_back(self, share: Share) -> None:
        """Once the step has ended."""
        self._cores |= share.cores
        self._gpus = [gpu for gpu in self.all_gpus if gpu in {*self._gpus, *share.gpus}]

    def needs(self, step: Step) -> tuple[int, int]:
        """Cores and GPUs of a step, at most all; a step that takes as many as it gets (filter, grade) has a core."""
        processes, count, gpus_each = step.processes, 1, 0
        if isinstance(processes, Ranks):
            count, gpus_each = processes.world_size, 1
        elif isinstance(processes, Replicas):
            gpus_each = processes.gpus_each
            count = processes.count or (max(1, len(self.all_gpus) // gpus_each) if gpus_each and self.all_gpus else 1)
        gpus = min(len(self.all_gpus), count * gpus_each)
        # Engines and ranks on GPUs use more threads than they have; one share of the cores is left for steps without a GPU.
        cores = len(self.all_cores) * gpus // (len(self.all_gpus) + 1) if gpus else count * step.config.threads
        return min(len(self.all_cores), max(cores, 1)), gpus

    def part(self, step: Step) -> float:
        """How much of the machine a step takes, at most 1."""
        cores, gpus = self.needs(step)
        return max(cores / len(self.all_cores), gpus / max(len(self.all_gpus), 1))

"""A step of a run: a plain function of a typed config, input artifacts and an output folder.

A step is known by its kind (which function runs it), its config and its inputs (earlier steps, or files from outside). The hash
of these names its folder: a changed setting re-runs what depends on it and nothing else. Settings that are `ExecutionOnly`
shape no result and enter no hash.
"""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import pyarrow as pa

from dasd_megatron.artifacts.artifact import Artifact, is_complete
from dasd_megatron.artifacts.shard_file import GROUP_BYTES
from dasd_megatron.artifacts.writer import ArtifactWriter
from dasd_megatron.config.base import Config, ExecutionOnly, Positive
from dasd_megatron.config.gpu_specs import GpuName
from dasd_megatron.config.launch import NodeGroup
from dasd_megatron.steps.cost_estimate import Cost, Documents, InputEstimates, Packs
from dasd_megatron.utils.hashing import fingerprint, hash_json

# Raised when the format or meaning of a kind's artifact changes, so that older folders are not taken for new ones.
FORMAT_VERSION = 5


class StepConfig(Config):
    """What every step's config has."""

    threads: ExecutionOnly[Positive] = 1
    """Of the step's process, and of each of its ranks and replicas."""

    may_be_empty: ExecutionOnly[bool] = False
    """Of a rehearsal: whether a step that has nothing to hand on ends well."""


C = TypeVar("C", bound=StepConfig)


@dataclass(frozen=True)
class Ranks:
    """A step runs as several processes that work as one, under torchrun, and save when they are told to stop."""

    world_size: int
    layout: str  # for messages


@dataclass(frozen=True)
class Replicas:
    """A step runs as several processes that share out its shards: `count` on a machine, by default one for each share of its
    GPUs of `gpus_each`; of a step that uses no GPU (0), one for each CPU core."""

    count: int | None
    gpus_each: int


@dataclass(frozen=True)
class StepContext(Generic[C]):
    """What a step is given when it runs. It knows neither who calls it nor where it runs."""

    name: str
    config: C
    inputs: Mapping[str, Path]
    output: ArtifactWriter

    def artifact(self, name: str) -> Artifact:
        """A finished input artifact."""
        return Artifact(self.inputs[name])


class StepKind(ABC, Generic[C]):
    """One kind of step: what it needs to run, what it will cost, and how it runs. `C` is its config.

    Modules that define kinds load nothing heavy when they are imported: a dry run asks every kind for its cost.
    """

    # As registered in steps/registry.py.
    name: ClassVar[str]
    # The subcommand of `dasd` that runs a single step of this kind; none: `dasd launch --only` does.
    command: ClassVar[str | None] = None

    @abstractmethod
    def run(self, context: StepContext[C]) -> dict[str, Any]:
        """Does the work; returns facts for the manifest: `counts`, `dropped` rows by reason, metrics."""

    def group(self, config: C) -> NodeGroup:
        """The part of a recipe's launch section that its jobs take their resources from."""
        return "data"

    def processes(self, config: C) -> Ranks | Replicas | None:
        """As which processes it runs; None: as one."""
        return None

    def environment(self, config: C) -> Mapping[str, str]:
        """Variables that its processes start with, beside those of the user's environment."""
        return {}

    def image(self, config: C) -> str | None:
        """Which of the cluster's images it runs in where the recipe doesn't say; None: the one of its node group."""
        return None

    def cost(self, config: C, inputs: InputEstimates) -> Cost:
        """What it makes, reads, writes and leaves on disk. Raises Unknown where that can't be known."""
        return Cost()

    def hours(self, config: C, inputs: InputEstimates, gpu: GpuName | None, processes: int) -> float | None:
        """How long it takes as so many processes, on nodes with GPUs of that kind or without any; None where that isn't known.
        Raises Unknown."""
        return None

    def prompts(self, config: C, inputs: InputEstimates) -> float:
        """How many prompts it is expected to make."""
        raise TypeError(f"{self.name} makes no prompts")

    def documents(self, config: C, inputs: InputEstimates) -> Documents:
        """The responses that it is expected to make or pass on; those of its input by default."""
        return inputs.documents("responses")

    def packs(self, config: C, inputs: InputEstimates) -> Packs:
        """The packs that it is expected to make."""
        raise TypeError(f"{self.name} makes no packs")

    def shards(self, config: C, inputs: InputEstimates) -> int:
        """Into how many parts its work is cut; as many as its input's by default."""
        return inputs.shards("responses")


class Claim(Protocol):
    """A shard that is this process's to do, until the claim is closed."""

    shard: int

    def is_held(self) -> bool:
        """Whether nobody has taken it over while this process stood still."""

    def close(self) -> None:
        """Gives it back."""


class Claims(Protocol):
    """The shards of a step, shared out among processes."""

    def take(self) -> Claim | None:
        """A shard that is left and that nobody works on; None where there is none at the moment."""

    def exhausted(self) -> bool:
        """Whether every shard is done, or claimed here, as far as `take` has seen."""


# Seconds between looks for a shard, where others work on all that are left: should one of them die, its shard is free again.
POLL = 0.2


@dataclass(frozen=True)
class Standing:
    """How far a step is.

    Attributes:
        done, total: of its unit; a total of None isn't known yet.
        note: more in a few words.
    """

    done: int
    total: int | None
    note: str = ""


# Shard number -> its tables by name, a piece at a time; at least one piece.
ShardWork = Callable[[int], Iterable[Mapping[str, pa.Table]]]


class ShardedStepKind(StepKind[C]):
    """Maps numbered shards of its input to tables, each shard on its own, so that replicas can share them out."""

    # The table whose shard says that the work on that shard is done; written after the others.
    table: ClassVar[str] = "responses"
    # Tables that hold only what the step adds to the same table of an input (artifacts/artifact.py): table -> input.
    extends: ClassVar[Mapping[str, str]] = {}
    # Of a row group of its tables, in memory.
    group_bytes: ClassVar[int] = GROUP_BYTES
    # What its progress is counted in.
    unit: ClassVar[str] = "shards"

    @abstractmethod
    def shard_count(self, context: StepContext[C]) -> int:
        """Number of shards; cheap."""

    @abstractmethod
    def summarize(self, context: StepContext[C]) -> dict[str, Any]:
        """Facts for the manifest, from the shards on disk."""

    def facts(self, context: StepContext[C]) -> dict[str, Any]:
        """All facts for the manifest."""
        extends = {table: context.inputs[name].name for table, name in self.extends.items()}
        return {"extends": extends, **self.summarize(context)}

    def useful_processes(self, context: StepContext[C]) -> int:
        """How many processes the step is worth; as many as it has shards by default."""
        return self.shard_count(context)

    def pending(self, context: StepContext[C]) -> list[int]:
        """Shards that are not on disk yet."""
        done = context.output.shard_numbers(self.table)
        return [shard for shard in range(self.shard_count(context)) if shard not in done]

    def watch(self, context: StepContext[C]) -> Callable[[], Standing]:
        """Looks how far all processes together are, each time that it is called."""
        count = self.shard_count(context)
        return lambda: Standing(count - len(self.pending(context)), count)

    @abstractmethod
    def do_shards(self, context: StepContext[C], claims: Claims) -> None:
        """Does shards until none is left."""

    def run(self, context: StepContext[C]) -> dict[str, Any]:
        """All shards that are left, in this process, which has the step to itself."""
        self.do_shards(context, _Unshared(self.pending(context)))
        return self.facts(context)


class ShardByShardKind(ShardedStepKind[C]):
    """A step whose processes do one shard after another."""

    @abstractmethod
    def open(self, context: StepContext[C]) -> ShardWork:
        """Loads what the work needs, once a process, and returns the work."""

    def do_shards(self, context: StepContext[C], claims: Claims) -> None:
        """Does shards until none is left."""
        work: ShardWork | None = None
        while not claims.exhausted():
            claim = claims.take()
            if claim is None:
                time.sleep(POLL)
                continue
            with contextlib.closing(claim):
                work = work or self.open(context)
                self.write(context, work, claim.shard, claim.is_held)  # whoever took it over writes the same

    def write(self, context: StepContext[C], work: ShardWork, shard: int, wanted: Callable[[], bool]) -> None:
        """Does one shard, and writes it if it's still `wanted` at the end."""
        with context.output.shard(shard, self.table, self.group_bytes) as writer:
            for tables in work(shard):
                writer.write(tables)
            if not wanted():
                writer.discard()


class _Unshared:
    """Claims of the only process."""

    def __init__(self, pending: Sequence[int]) -> None:
        self._pending = list(pending)

    def take(self) -> Claim | None:
        return _Own(self._pending.pop(0)) if self._pending else None

    def exhausted(self) -> bool:
        return not self._pending


@dataclass
class _Own:
    shard: int

    def is_held(self) -> bool:
        return True

    def close(self) -> None:
        pass


@dataclass(frozen=True)
class ExternalInput:
    """Input from outside the run: a file, a model folder, or a data set by name."""

    path: Path | None
    name: str

    @cached_property
    def key(self) -> str:
        """Content hash of the file or folder."""
        return fingerprint(self.path) if self.path is not None else hash_json(self.name)


@dataclass(frozen=True)
class Step:
    """One step of a run."""

    name: str
    kind: StepKind[Any]
    config: StepConfig
    inputs: Mapping[str, Step | ExternalInput]
    artifacts: Path  # the folder of all of them
    # Whether its files are on another machine, so that nothing is known of them here.
    remote: bool = False

    @property
    def group(self) -> NodeGroup:
        """The part of a recipe's launch section that its jobs take their resources from."""
        return self.kind.group(self.config)

    @property
    def processes(self) -> Ranks | Replicas | None:
        """As which processes it runs; None: as one."""
        return self.kind.processes(self.config)

    @cached_property
    def key(self) -> str:
        """Hash of everything that shapes the result."""
        inputs = {name: source.key for name, source in self.inputs.items()}
        return hash_json([FORMAT_VERSION, self.kind.name, self.config.result_settings(), inputs])

    @cached_property
    def folder(self) -> Path:
        """Where the artifact is, or will be."""
        return self.artifacts / f"{self.name}-{self.key[:12]}"

    @property
    def done(self) -> bool:
        """Whether the artifact is finished; never so for one on another machine."""
        return not self.remote and is_complete(self.folder)

    def source(self, name: str) -> Step:
        """The step that this one reads as the input `name`."""
        found = self.inputs[name]
        assert isinstance(found, Step)
        return found

    def input_path(self, name: str) -> Path:
        """Folder or file of an input."""
        source = self.inputs[name]
        path = source.folder if isinstance(source, Step) else source.path
        if path is None:
            raise KeyError(f"{name} of {self.name} is no file")
        return path

"""Checkpoints in Megatron's distributed format: independent of the layout, written aside, then renamed.

A folder that carries its final name is whole; the newest one is what a stopped or killed stage resumes from.
"""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer
from torch.distributed.checkpoint.api import CheckpointException

from conversion.carried import HF_FOLDER, carry, with_dtype
from conversion.checkpoint_metadata import read_index
from conversion.hf_model import HFModel
from dasd_megatron.artifacts.training_files import SAVES
from dasd_megatron.errors import UserError
from dasd_megatron.training.optimizer_state import sharded_state, take_up
from dasd_megatron.training.random_state import layout, random_states, set_random_states, sharded
from dasd_megatron.training.save import Save, remove

_STEP = re.compile(r"step-(\d+)")


def save_weights(chunks: Sequence[GPTModel], hf: HFModel, folder: Path) -> None:
    """Writes the weights alone, and what of `hf` a checkpoint carries along; called on every rank."""
    Save(_weights(chunks), folder, _carried(chunks, hf)).finish()


def load_weights(chunks: Sequence[GPTModel], folder: Path) -> None:
    """Loads weights written in any layout; called on every rank."""
    read_index(folder)  # Megatron reads it, too, but as a pickle that may run code
    _set_weights(chunks, _load(_weights(chunks), folder))


class StepCheckpoints:
    """The checkpoints `folder/step-N` of a stage: everything that the steps after N depend on.

    These are weights, optimizer state and random states; Transformer Engine's FP8 scales are part of the weights' state.
    The place in the data and the learning rate are functions of N. Every method is called on every rank.
    """

    def __init__(
        self,
        chunks: Sequence[GPTModel],
        hf: HFModel,
        optimizer: MegatronOptimizer,
        folder: Path,
        execution: Mapping[str, Any],
    ) -> None:
        self._chunks, self._optimizer, self._folder = chunks, optimizer, folder
        self._carry = _carried(chunks, hf)
        self._distributed: bool = execution["parallel"]["distributed_optimizer"]
        self._keep, self._keep_every = execution["keep_checkpoints"], execution["keep_every"]
        self._waits = not execution["async_save"]
        self._current: Save | None = None
        self._newest, self._began = 0, 0.0

    def save(self, step: int) -> None:
        """Takes a snapshot and starts to write it; waits first for a save that is still under way."""
        self.wait()
        if self._newest == step:
            return
        weights = _weights(self._chunks)
        optimizer, _ = sharded_state(self._optimizer, weights, _metadata())
        state = {**weights, "optimizer": optimizer, "random": sharded(random_states())}
        # Values that aren't sharded: the same on every rank.
        common = {"step": step, "random_layout": layout(), "distributed_optimizer": self._distributed}
        self._began = time.monotonic()
        self._current = Save({**state, **common}, self._folder / f"step-{step:07d}", self._carry)
        self._newest = step
        if self._waits:
            self.wait()

    @property
    def writing(self) -> bool:
        """Whether this rank is still writing. Once none is, a `wait` takes no time and gives the checkpoint its name."""
        return self._current is not None and self._current.writing

    def wait(self) -> None:
        """Ends a save that is under way, if any, and removes older checkpoints. Raises UserError if it can't be written."""
        if self._current is None:
            return
        save, self._current = self._current, None
        save.finish()
        if dist.get_rank() == 0:
            self._note(time.monotonic() - self._began)
        self._remove_all_but(self._keep)

    def _note(self, seconds: float) -> None:
        """How long the save took, by which the signal before a time limit is timed; training goes on meanwhile."""
        with (self._folder / SAVES).open("a") as file:
            file.write(json.dumps({"step": self._newest, "seconds": round(seconds, 3)}) + "\n")

    def end(self) -> None:
        """The stage is over: leaves only the checkpoints at multiples of keep_every."""
        self.wait()
        self._remove_all_but(0)
        if dist.get_rank() == 0:
            for damaged in self._folder.glob("damaged-step-*"):
                remove(damaged)

    def _remove_all_but(self, keep: int) -> None:
        if dist.get_rank() == 0:
            for old in superseded(step_folders(self._folder), keep, self._keep_every):
                remove(old)

    def load_latest(self) -> int:
        """Loads the newest checkpoint that is whole and returns its step; 0 where there is none.

        A damaged one is passed over with a warning, and loses its name. Raises UserError when all are damaged.
        """
        found = step_folders(self._folder)
        for step_folder in reversed(found):
            problem: UserError | None = None
            try:
                step = self._load(step_folder)
            except UserError as error:
                problem = error
            problems: list[UserError | None] = [None] * dist.get_world_size()
            dist.all_gather_object(problems, problem)
            if not any(problems):
                self._set_aside([newer for newer in found if newer > step_folder])
                return step
            if dist.get_rank() == 0:
                print(f"warning: {next(filter(None, problems))}; going back to the checkpoint before", file=sys.stderr)
        if found:
            raise UserError(
                f"{self._folder}: none of its checkpoints can be taken up (see above); mend what is said there, or delete the "
                "folder: the stage then starts anew"
            )
        return 0

    def _set_aside(self, damaged: list[Path]) -> None:
        """So that they count no more as the newest, for the sake of which older ones are removed."""
        if dist.get_rank() == 0:
            for folder in damaged:
                folder.rename(folder.with_name(f"damaged-{folder.name}-{time.time_ns()}"))
        dist.barrier()

    def _load(self, folder: Path) -> int:
        with _reading(folder):
            common = dist_checkpointing.load_common_state_dict(str(folder))
            step, same_layout = int(common["step"]), common["random_layout"] == layout()
        if common["distributed_optimizer"] != self._distributed:
            raise UserError(
                f"{folder}: was written with parallel.distributed_optimizer={not self._distributed}; its optimizer state "
                "can only be taken up with that"
            )
        if step != _step(folder):
            raise UserError(f"{folder}: holds step {step}; it was renamed, or copied from elsewhere")
        weights = _weights(self._chunks)
        optimizer, own = sharded_state(self._optimizer, weights, _metadata(), is_loading=True)
        wanted = {**weights, "optimizer": optimizer}
        state = _load({**wanted, "random": sharded(None)} if same_layout else wanted, folder)
        _set_weights(self._chunks, state)
        take_up(self._optimizer, state["optimizer"], own, step)
        if same_layout:
            set_random_states(state["random"])
        return step


def step_folders(folder: Path) -> list[Path]:
    """Finished step checkpoints, oldest first."""
    return sorted(path for path in folder.glob("step-*") if _STEP.fullmatch(path.name))


def superseded(folders: list[Path], keep: int, keep_every: int | None) -> list[Path]:
    """Those of `folders` (oldest first) that are neither among the newest `keep` nor at a multiple of `keep_every`."""
    older = folders[: max(0, len(folders) - keep)]
    return [path for path in older if keep_every is None or _step(path) % keep_every]


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


def _weights(chunks: Sequence[GPTModel]) -> dict[str, Any]:
    """Weights by chunk; inside, tensors carry names that don't depend on the layout."""
    return {f"model{n}": chunk.sharded_state_dict(metadata=_metadata()) for n, chunk in enumerate(chunks)}


def _carried(chunks: Sequence[GPTModel], hf: HFModel) -> Callable[[Path], None]:
    """Writes what a checkpoint carries along into its folder."""
    config = with_dtype(hf.config, chunks[0].config.params_dtype)
    return lambda folder: carry(hf.folder, folder / HF_FOLDER, config)


def _set_weights(chunks: Sequence[GPTModel], state: Mapping[str, Any]) -> None:
    for number, chunk in enumerate(chunks):
        chunk.load_state_dict(state[f"model{number}"])


def _metadata() -> dict[str, Any]:
    return {"dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}


def _load(state: dict[str, Any], folder: Path) -> dict[str, Any]:
    with _reading(folder):
        loaded: dict[str, Any] = dist_checkpointing.load(state, str(folder))
    return loaded


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Turns what goes wrong while `folder` is read into a UserError."""
    if not folder.is_dir():
        raise UserError(f"{folder}: no such checkpoint")
    try:
        yield
    except (Exception, CheckpointException) as error:  # many kinds, for damaged checkpoints and those of another model
        reason = str(error).strip().splitlines()[-1]
        raise UserError(f"{folder}: can't be loaded as a checkpoint of this model: {reason}") from error

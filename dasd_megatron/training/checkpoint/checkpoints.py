"""Checkpoints in Megatron's distributed format: independent of the layout, written into a temporary folder, then renamed.

A folder with its final name is whole; the newest one is what a stopped or killed stage resumes from.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer

from dasd_megatron.artifacts.training_files import SAVES
from dasd_megatron.megatron_model.weights import (
    exchange_shares,
    load_sharded,
    own_shares,
    reading,
    saved_weights,
    sharded_weights,
)
from dasd_megatron.models.hf_assets import HF_ASSETS, copy_hf_assets, with_dtype
from dasd_megatron.models.hf_model import HFModel
from dasd_megatron.training.checkpoint.async_save import Save, remove
from dasd_megatron.training.checkpoint.fp8_scales import set_scales, sharded_scales
from dasd_megatron.training.checkpoint.optimizer_state import restore, sharded_state
from dasd_megatron.training.checkpoint.random_state import layout, random_states, set_random_states, sharded
from dasd_megatron.training.train_step_config import TrainConfig
from dasd_megatron.utils.errors import UserError

_STEP = re.compile(r"step-(\d+)")


def save_weights(chunks: Sequence[GPTModel], hf: HFModel, folder: Path) -> None:
    """Writes the weights alone, and the assets of `hf` (config, tokenizer, templates); called on every rank."""
    Save(saved_weights(sharded_weights(chunks)), folder, hf_assets_writer(chunks, hf)).finish()


class StepCheckpoints:
    """The checkpoints `folder/step-N` of a stage: everything that the steps after N depend on.

    These are weights, optimizer state, random states, and the scales of delayed FP8.
    The place in the data and the learning rate are functions of N. Every method is called on every rank.
    """

    def __init__(
        self,
        chunks: Sequence[GPTModel],
        hf: HFModel,
        optimizer: MegatronOptimizer,
        folder: Path,
        config: TrainConfig,
    ) -> None:
        self._chunks, self._optimizer, self._folder = chunks, optimizer, folder
        self._write_assets = hf_assets_writer(chunks, hf)
        training = config.training
        self._distributed = config.parallel.distributed_optimizer
        self._keep, self._keep_every = training.keep_checkpoints, training.keep_every
        self._waits = not training.async_save
        self._current: Save | None = None
        self._newest, self._began = 0, 0.0

    def save(self, step: int) -> None:
        """Takes a snapshot and starts to write it; waits first for a save that is still under way."""
        self.wait()
        if self._newest == step:
            return
        weights = sharded_weights(self._chunks)
        optimizer, _ = sharded_state(self._optimizer, weights)
        own = {"optimizer": optimizer, "random": sharded(random_states()), "fp8": sharded_scales(self._chunks)}
        state = {**saved_weights(weights), **own}
        # Values that aren't sharded: the same on every rank.
        common = {"step": step, "random_layout": layout(), "distributed_optimizer": self._distributed}
        self._began = time.monotonic()
        self._current = Save({**state, **common}, self._folder / f"step-{step:07d}", self._write_assets)
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
        """How long the save took, by which the signal before a time limit is timed; training continues meanwhile."""
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

        A damaged one is skipped with a warning, and loses its name. Raises UserError when all are damaged.
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
                self._mark_damaged([newer for newer in found if newer > step_folder])
                return step
            if dist.get_rank() == 0:
                print(
                    f"warning: {next(filter(None, problems))}; falling back to the checkpoint before", file=sys.stderr
                )
        if found:
            raise UserError(
                f"{self._folder}: none of its checkpoints can be loaded (see above); fix what is said there, or delete the "
                "folder: the stage then restarts"
            )
        return 0

    def _mark_damaged(self, damaged: list[Path]) -> None:
        """So that they count no more as the newest, for the sake of which older ones are removed."""
        if dist.get_rank() == 0:
            for folder in damaged:
                folder.rename(folder.with_name(f"damaged-{folder.name}-{time.time_ns()}"))
        dist.barrier()

    def _load(self, folder: Path) -> int:
        with reading(folder):
            common = dist_checkpointing.load_common_state_dict(str(folder))
            step, same_layout = int(common["step"]), common["random_layout"] == layout()
        if common["distributed_optimizer"] != self._distributed:
            raise UserError(
                f"{folder}: was written with parallel.distributed_optimizer={not self._distributed}; its optimizer state "
                "can only be restored with that"
            )
        if step != _step(folder):
            raise UserError(f"{folder}: holds step {step}; it was renamed, or copied from elsewhere")
        weights = sharded_weights(self._chunks)
        optimizer, own = sharded_state(self._optimizer, weights, is_loading=True)
        scales = sharded_scales(self._chunks, is_loading=True)
        wanted = {"weights": own_shares(weights), "optimizer": optimizer, "fp8": scales}
        state = load_sharded({**wanted, "random": sharded(None)} if same_layout else wanted, folder)
        exchange_shares(weights)
        set_scales(self._chunks, state.get("fp8", {}))
        restore(self._optimizer, state["optimizer"], own, step)
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


def hf_assets_writer(chunks: Sequence[GPTModel], hf: HFModel) -> Callable[[Path], None]:
    """Writes the model's config, tokenizer and templates into a checkpoint's folder."""
    config = with_dtype(hf.config, chunks[0].config.params_dtype)
    return lambda folder: copy_hf_assets(hf.folder, folder / HF_ASSETS, config)

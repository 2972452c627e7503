"""Work shared out over processes, with progress in bytes; nothing outlives this process."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.sharedctypes import Synchronized
from typing import Any, TypeVar

import torch

from dasd_megatron.utils.child_process import die_with
from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.progress import Progress

Task = TypeVar("Task")
Result = TypeVar("Result")
MOST = 8  # processes; more only wait for the disk
REFRESH = 0.2  # seconds

# What a forked worker finds in its memory: the work, and the count of bytes worked off.
_function: Callable[[Any], Any]
_tasks: Sequence[Any]
_done: Synchronized[int]


def work(
    label: str,
    function: Callable[[Task], Result],
    tasks: Sequence[Task],
    total_bytes: int,
) -> list[Result]:
    """`function` of each task, in order; it calls `advance` with the bytes that it has worked off.

    Processes are forked: what `function` and `tasks` refer to costs no time and no memory. Raises UserError as `function` does.
    """
    global _function, _tasks, _done
    context = multiprocessing.get_context("fork")
    _function, _tasks, _done = function, tasks, context.Value("Q", 0)
    count = min(available_cores(), MOST, len(tasks))
    with (
        Progress(label, total_bytes, "B") as progress,
        ProcessPoolExecutor(count, context, _prepare, (os.getpid(),)) as pool,
    ):
        # Ctrl-C waits until the workers, forked here, ignore it.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        futures = [pool.submit(_run, number) for number in range(len(tasks))]
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        pending = set(futures)
        try:
            while pending:
                finished, pending = wait(pending, REFRESH, FIRST_COMPLETED)
                for future in finished:
                    future.result()
                progress.update(_done.value)
        except BrokenProcessPool:
            raise UserError(
                f"{label}: the system ended a worker, most likely because memory ran out; free some and run again"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)
    return [future.result() for future in futures]


def advance(count: int) -> None:
    """Counts `count` more bytes as worked off; called by workers."""
    with _done.get_lock():
        _done.value += count


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def _run(number: int) -> Any:
    return _function(_tasks[number])


def _prepare(parent: int) -> None:
    die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent, which gets it too, ends in order
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    torch.set_num_threads(1)

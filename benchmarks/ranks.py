"""Runs a module as several ranks on this machine."""

from __future__ import annotations

import os
import subprocess
import sys


def torchrun(ranks: int, module: str, *arguments: str) -> None:
    """`python -m module arguments` as so many ranks; with emulated kernels where this process has them.

    Its output goes to standard error. Raises CalledProcessError.
    """
    emulated = ["tests.helpers.te_on_cpu.run"] if "TE_ON_CPU" in os.environ else []
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    subprocess.run([*command, "-m", *emulated, module, *arguments], check=True, stdout=sys.stderr)

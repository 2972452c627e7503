"""Debian packages that tests need, installed where they are missing."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path


def program(name: str) -> str | None:
    """The path of a program, of the administrator's too."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


def install(packages: Sequence[str], programs: Sequence[str]) -> None:
    """Installs `packages` where one of `programs` is missing. Raises RuntimeError where that can't be done."""
    if all(map(program, programs)):
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise RuntimeError(f"{', '.join(packages)} are needed; install them, or run as root with apt")
    # Packages must not start services of their own.
    policy = Path("/usr/sbin/policy-rc.d")
    kept = policy.exists()
    if not kept:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    try:
        for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", *packages]):
            done = subprocess.run(["apt-get", *command], env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"apt-get failed: {done.stderr[-2000:]}")
    finally:
        if not kept:
            policy.unlink()

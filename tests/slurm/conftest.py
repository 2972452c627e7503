"""A real Slurm with two virtual nodes, and the launcher in front of it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.helpers.slurm_cluster import ACCOUNT, PARTITION, Cluster, install


@dataclass
class Site:
    """A cluster, and whoever submits to it."""

    cluster: Cluster
    folder: Path
    settings: dict[str, object] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    program: tuple[str, ...] = ("tools/launch.py",)

    @property
    def home(self) -> Path:
        """NeMo-Run's home."""
        return self.folder / "home"

    def command(self, *arguments: str) -> list[str]:
        """The launcher's command line. Changes ride along: tests run on the tree as it is."""
        file = self.folder / "cluster.yaml"
        file.write_text(
            yaml.safe_dump({"account": ACCOUNT, "partition": PARTITION, "gpus_per_node": 0, **self.settings})
        )
        return [
            *(sys.executable, *self.program, "--executor", "slurm", "--cluster", str(file), "--ship-changes"),
            *arguments,
        ]

    def launch(self, *arguments: str) -> subprocess.Popen[str]:
        """Starts the launcher."""
        environment = {**self.cluster.environment, "NEMORUN_HOME": str(self.home), **self.environment}
        return subprocess.Popen(
            self.command(*arguments),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def finish(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, standard output and standard error."""
        process = self.launch(*arguments)
        out, errors = process.communicate(timeout=600)
        return process.returncode, out, errors

    @contextlib.contextmanager
    def without_folder(self, folder: Path) -> Iterator[None]:
        """A node that has a file system of its own in the place of `folder`; jobs go there."""
        node = self.cluster.nodes[0]
        self.cluster.stop_node(node)
        own = f'mount -t tmpfs tmpfs {folder} && exec "$@"'
        self.cluster.start_node(node, "unshare", "--mount", "sh", "-c", own, "sh")
        self.cluster.wait_for(lambda: self.cluster.states()[node] == "idle", "idle node")
        self.settings["sbatch"] = {"nodelist": node}
        try:
            yield
        finally:
            self.cluster.stop_node(node)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    try:
        install()
    except RuntimeError as error:
        pytest.skip(str(error))
    made = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture
def site(cluster: Cluster, tmp_path: Path) -> Iterator[Site]:
    """For one test: no job is left in the queue after it, and every node is up."""
    yield Site(cluster, tmp_path)
    with contextlib.suppress(RuntimeError):
        cluster.run("scancel", "--user=root")
    cluster.recover()


@pytest.fixture
def recorded_sbatch(site: Site, tmp_path: Path) -> Path:
    """A file with the arguments of every call of sbatch, one call a line; the real one does the work."""
    folder, calls = tmp_path / "bin", tmp_path / "sbatch-calls"
    folder.mkdir()
    script = folder / "sbatch"
    script.write_text(f'#!/bin/sh\necho "$@" >> {calls}\nexec {shutil.which("sbatch")} "$@"\n')
    script.chmod(0o755)
    site.environment["PATH"] = f"{folder}:{os.environ['PATH']}"
    return calls

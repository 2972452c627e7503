"""Submission from a machine that isn't a login node: by SSH, as NeMo-Run does it."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import TOY
from tests.helpers.apt import install, program
from tests.helpers.small_run import small_run
from tests.slurm.conftest import Site

ABSOLUTE = [
    *(f"{model}.model={TOY}/{model}" for model in ("teacher", "student")),
    f"prompts.train.path={TOY}/train.jsonl",
    f"evaluation.benchmarks.0.path={TOY}/test.jsonl",
]


@pytest.fixture
def login_node(site: Site, tmp_path: Path) -> Iterator[dict[str, object]]:
    """An SSH server on this machine that lets one key in; the tunnel's settings."""
    try:
        install(["openssh-server", "rsync"], ["sshd", "rsync"])
    except RuntimeError as error:
        pytest.skip(str(error))
    folder = tmp_path / "ssh"
    folder.mkdir(mode=0o700)
    for key in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True)
    with socket.create_server(("127.0.0.1", 0)) as opened:
        port = opened.getsockname()[1]
    (folder / "config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/user.pub\n"
        f"StrictModes no\nUsePAM no\nPermitRootLogin yes\nPidFile {folder}/pid\n"
        f"SetEnv SLURM_CONF={site.cluster.conf} PATH={os.environ['PATH']}\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen([str(program("sshd")), "-D", "-f", str(folder / "config"), "-E", str(folder / "log")])
    # ssh asks about unknown hosts; the user's own files are left alone.
    wrapper = tmp_path / "bin" / "ssh"
    wrapper.parent.mkdir()
    wrapper.write_text(
        f'#!/bin/sh\nexec {shutil.which("ssh")} -o StrictHostKeyChecking=no -o UserKnownHostsFile={folder}/known "$@"\n'
    )
    wrapper.chmod(0o755)
    site.environment["PATH"] = f"{wrapper.parent}:{os.environ['PATH']}"
    yield {
        "host": "127.0.0.1",
        "port": port,
        "user": getpass.getuser(),
        "identity": str(folder / "user"),
        "job_dir": str(tmp_path / "jobs"),
    }
    server.terminate()
    server.wait()


def test_submitted_by_ssh(site: Site, login_node: dict[str, object], tmp_path: Path) -> None:
    """Code, recipe and scripts go over; the steps run there, and are followed from here."""
    site.settings["tunnel"] = login_node
    folder = tmp_path / "run"
    only = ["--only", "benchmark_arithmetic", "--only", "prompts_train"]
    code, out, errors = site.finish(*small_run(folder), *ABSOLUTE, *only)
    assert code == 0, out + errors
    assert len(list((folder / "artifacts").glob("*/COMPLETE"))) == 2
    (experiment,) = (tmp_path / "jobs" / "toy").iterdir()
    assert (experiment / "source" / "SHIPPED.json").is_file()
    assert (experiment / "recipe.yaml").is_file()
    code, out, errors = site.finish(*small_run(folder), *only)
    assert code == 2
    assert "give an absolute path on 127.0.0.1" in errors


def test_a_login_node_that_is_not_there(site: Site, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as opened:
        port = opened.getsockname()[1]
    site.settings["tunnel"] = {"host": "127.0.0.1", "port": port, "user": "me", "job_dir": "/jobs"}
    code, out, errors = site.finish(*small_run(tmp_path / "run"), *ABSOLUTE)
    assert code == 2, out + errors
    assert "error: 127.0.0.1 can't be reached: " in errors
    assert "Traceback" not in errors

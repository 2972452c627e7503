"""The cluster file: what a site's Slurm needs to know about an account, its partitions, images, mounts and login.

Recipes say what a run needs, a cluster file where it is found; so one recipe goes to any cluster. A commented example:
examples/cluster.yaml.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field, field_validator, model_validator

from dasd_megatron.config.base import Config, NonNegative, Positive
from dasd_megatron.config.gpu_specs import GpuName
from dasd_megatron.config.launch import NodeGroup
from dasd_megatron.config.load import load_section

Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
_SECRET = re.compile(r"(^|_)(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|API_?KEY|ACCESS_KEY)(_|$)", re.IGNORECASE)
# A variable that is set to something other than another variable.
_SET = re.compile(r"\b([A-Za-z_]\w*)=[\"']?[^$\s\"']")
# What the launcher itself decides.
_OWN_FLAGS = {
    "account", "array", "dependency", "error", "gpus_per_node", "job_name", "kill_on_invalid_dep", "nodes", "ntasks_per_node",
    "open_mode", "output", "parsable", "partition", "requeue", "reservation", "signal", "time",
}  # fmt: skip


class TunnelConfig(Config):
    """Login by SSH. Its key, or an agent, must log in without a question."""

    host: str
    """The login node."""

    user: str
    """Who logs in."""

    port: Positive | None = None
    """By default SSH's own."""

    identity: Path | None = None
    """File of the private key; by default an agent's, or SSH's own."""

    job_dir: str
    """Folder on the cluster, shared between its nodes, that takes scripts, code and logs."""


class ClusterConfig(Config):
    """Settings of a site. Nothing of it shapes a result."""

    model_config = ConfigDict(coerce_numbers_to_str=True)  # variables are text, also where YAML sees a number

    account: str
    """What jobs are charged to."""

    partition: str
    """Where jobs go."""

    partitions: dict[NodeGroup, str] = {}
    """Where a kind of step goes instead, for example {data: cpu}."""

    reservation: str | None = None
    """Of nodes, by its name."""

    gpus_per_node: NonNegative = 8
    """Of each node; 0 where there are none."""

    gpu: GpuName = "h100"
    """Which they are: what a dry run's GPU-hours are estimated for."""

    gpu_hour_price: float | None = Field(None, gt=0)
    """Of one GPU for an hour, in whatever currency: a rehearsal then says what a run costs."""

    images: dict[str, str] = {}
    """Containers (pyxis) by the name that recipes give them (launch.*.image): a .sqsh file, or an image of a registry as
    enroot writes it. Without any, steps run on the nodes' own environment."""

    mounts: list[str] = []
    """Folders that steps see: /lustre, or /path/on/node:/path/inside. Only with images."""

    python: str | None = None
    """Interpreter of a node or image; by default `python` in an image, and the one that submits elsewhere."""

    environment: dict[Variable, str] = {}
    """Variables of every job. No secrets."""

    secrets: list[Variable] = []
    """Names of variables that jobs take from the environment of whoever submits, for example HF_TOKEN. Their values are
    written nowhere: Slurm hands the environment on."""

    setup: list[str] = []
    """Shell lines before each step, such as `module load cuda`."""

    sbatch: dict[str, str | int | bool] = {}
    """Further parameters of sbatch, for example {qos: high, exclude: node17}; true for one without a value, false to
    leave out one that a job has by default (exclusive)."""

    tunnel: TunnelConfig | None = None
    """Absent where this machine is a login node."""

    @field_validator("environment")
    @classmethod
    def _no_secret(cls, environment: dict[str, str]) -> dict[str, str]:
        for name in environment:
            if _SECRET.search(name):
                raise ValueError(f"{name} looks like a secret, which belongs in no file: list its name under `secrets`")
        return environment

    @field_validator("setup")
    @classmethod
    def _no_secret_in_setup(cls, setup: list[str]) -> list[str]:
        cls._no_secret(dict.fromkeys((name for line in setup for name in _SET.findall(line)), ""))
        return setup

    @field_validator("sbatch")
    @classmethod
    def _flags(cls, sbatch: dict[str, str | int | bool]) -> dict[str, str | int | bool]:
        flags = {name.replace("-", "_"): value for name, value in sbatch.items()}
        cls._no_secret(dict.fromkeys(_SET.findall(str(flags.get("export", ""))), ""))
        for name in sorted(_OWN_FLAGS & set(flags)):
            raise ValueError(
                f"{name} is set by the launcher; give it as a setting of its own, or in the recipe's launch section"
            )
        return flags

    @field_validator("mounts")
    @classmethod
    def _mounts(cls, mounts: list[str]) -> list[str]:
        for mount in mounts:
            if not all(part.startswith("/") for part in mount.split(":")[:2]):
                raise ValueError(f"{mount}: write /path, or /path/on/node:/path/inside")
        return [mount if ":" in mount else f"{mount}:{mount}" for mount in mounts]

    @model_validator(mode="after")
    def _consistent(self) -> ClusterConfig:
        if self.mounts and not self.images:
            raise ValueError("mounts need images; without containers steps see the node's own folders")
        return self


def load_cluster(path: Path) -> ClusterConfig:
    """The cluster file at `path`. Raises UserError naming file, key and remedy."""
    return load_section(path, ClusterConfig, "a cluster file is a mapping of keys, such as `account: research`")

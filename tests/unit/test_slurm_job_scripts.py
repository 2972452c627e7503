"""The sbatch scripts for a cluster with containers, as they were last looked at; and what a job is given."""

from __future__ import annotations

import io
import json
import subprocess
import threading
import time
from pathlib import Path

import pytest

from dasd_megatron.config.load import load_recipe
from dasd_megatron.config.recipe import Recipe
from dasd_megatron.pipeline.graph import build_steps
from dasd_megatron.planning.job_resources import job_resources, seconds, time_limit
from dasd_megatron.slurm.absolute_paths import with_absolute_paths
from dasd_megatron.slurm.cluster_config import ClusterConfig, load_cluster
from dasd_megatron.slurm.dry_run import scripts
from dasd_megatron.slurm.experiment import jobs_of
from dasd_megatron.slurm.grace_period import EarlyStop, measured_grace_period
from dasd_megatron.steps.step import Step
from dasd_megatron.utils.errors import UserError
from tests.conftest import ROOT, TOY

GOLDEN = Path(__file__).parent / "golden"
LOOKED_AT = ("train_low_temperature", "sample_low_temperature", "filter_low_temperature")
# One step of each kind of job: two nodes of ranks, four nodes of replicas, one without a GPU.
OVERRIDES = [
    "run_dir=/lustre/runs/toy",
    "training.global_batch=16",
    "parallel.data=16",
    "launch.training.time='08:00:00'",
    "launch.sampling.nodes=4",
    "launch.replicas=null",
    "launch.data.memory_per_node=64G",
    "launch.steps={score_low_temperature: {nodes: 2}}",
]
EXAMPLE = ROOT / "examples" / "cluster.yaml"


def steps_and_recipe(*overrides: str) -> tuple[dict[str, Step], Recipe]:
    recipe = with_absolute_paths(load_recipe(TOY / "recipe.yaml", [*OVERRIDES, *overrides]), load_cluster(EXAMPLE))
    return build_steps(recipe), recipe


@pytest.fixture(autouse=True)
def in_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("nemo_run.config._NEMORUN_HOME", "/lustre/me/.nemo_run")
    monkeypatch.setattr("sys.stdin", io.StringIO())  # NeMo-Run hands it on to commands


def test_scripts_for_a_container_cluster() -> None:
    """To accept a change that is meant, delete the files and run the test twice."""
    steps, recipe = steps_and_recipe()
    cluster = load_cluster(EXAMPLE)
    made = scripts(recipe, jobs_of(recipe, steps, cluster), cluster)
    assert list(made) == list(steps)
    paths = {name: GOLDEN / f"{name}.sh" for name in LOOKED_AT}
    absent = [name for name, path in paths.items() if not path.exists()]
    for name in absent:
        paths[name].write_text(made[name])
    assert not absent, "these golden files are new; look at what was written"
    for name, path in paths.items():
        assert made[name] == path.read_text(), name
        assert subprocess.run(["bash", "-n"], input=made[name], text=True).returncode == 0


def test_scripts_ask_for_what_the_recipe_and_the_cluster_file_say() -> None:
    """The golden files, in words: image, mounts, GPUs, time, the signal, dependencies that end, and no restart by NeMo-Run."""
    train, sample, data = ((GOLDEN / f"{name}.sh").read_text() for name in LOOKED_AT)
    for script in (train, sample, data):
        assert "#SBATCH --account=research" in script
        assert "#SBATCH --kill-on-invalid-dep=yes" in script
        assert f"#SBATCH --signal=USR1@{300 if script is train else 30}" in script
        assert "--container-mounts /lustre/me/.nemo_run/experiments/toy/toy_TIME:" in script
        assert ",/lustre:/lustre," in script
        assert "HF_TOKEN" not in script
    assert "--container-image /lustre/images/dasd-training.sqsh" in train
    assert "--container-image /lustre/images/dasd-sampling.sqsh" in sample
    assert "#SBATCH --gpus-per-node=8" in train
    assert "#SBATCH --gpus-per-node=8" in sample
    assert "#SBATCH --exclusive" in train
    assert "#SBATCH --mem=0" in sample
    assert "export NCCL_IB_HCA=mlx5" in train
    assert "gpus" not in data
    assert "exclusive" not in data
    assert "#SBATCH --partition=cpu" in data
    assert "#SBATCH --mem=64G" in data
    assert "#SBATCH --nodes=2" in train
    assert "--processes 8" in train
    assert "#SBATCH --nodes=4" in sample
    assert "#SBATCH --time=08:00:00" in train


def test_nodes_follow_the_layout() -> None:
    steps, recipe = steps_and_recipe()
    stage = steps["train_low_temperature"]
    assert (job_resources(recipe, stage, 8).nodes, job_resources(recipe, stage, 8).processes_per_node) == (2, 8)
    assert (job_resources(recipe, stage, 4).nodes, job_resources(recipe, stage, 4).processes_per_node) == (4, 4)
    assert job_resources(recipe, stage, 0).nodes == 1
    assert job_resources(recipe, steps["score_low_temperature"], 8).nodes == 2
    assert job_resources(recipe, steps["score_low_temperature"], 8).processes_per_node == 8


def test_the_megatron_scorer_has_the_gpus_of_its_layout_and_trainings_image() -> None:
    """Transformer Engine is in that image alone."""
    scorer = "engine.scorer={name: megatron, tensor_parallel: 2, megatron: {context: 2}}"
    steps, recipe = steps_and_recipe(scorer, "launch.steps={score_high_temperature: {image: other}}")
    score = job_resources(recipe, steps["score_low_temperature"], 8)
    assert (score.image, score.processes_per_node) == ("training", 2)
    assert job_resources(recipe, steps["score_high_temperature"], 8).image == "other"
    sample = job_resources(recipe, steps["sample_low_temperature"], 8)
    assert (sample.image, sample.processes_per_node) == ("sampling", 8)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["launch.training.nodes=3"], "16 ranks (parallel: data=16) don't fit on 3 nodes with 8 GPUs each"),
        (["launch.training.nodes=1"], "16 ranks (parallel: data=16) don't fit on 1 nodes with 8 GPUs each"),
        (
            ["engine.teacher={tensor_parallel: 16}"],
            "one engine has 16 GPUs (engine.tensor_parallel, engine.megatron), and a node 8",
        ),
        (
            ["launch.training.time='00:04:00'"],
            "00:04:00 is no longer than the 300 seconds that it is told to stop before",
        ),
        (["launch.data.time='00:00:30'"], "00:00:30 is no longer than the 30 seconds that it is told to stop before"),
        (["launch.steps={sample: {nodes: 2}}"], "launch.steps.sample: no such step; steps: benchmark_arithmetic"),
        (["launch.data.image=other"], "the cluster file lists no image 'other' (images: training, sampling)"),
    ],
)
def test_refusals(overrides: list[str], message: str) -> None:
    cluster = load_cluster(EXAMPLE)

    def make() -> dict[str, str]:
        steps, recipe = steps_and_recipe(*overrides)
        return scripts(recipe, jobs_of(recipe, steps, cluster), cluster)

    with pytest.raises(UserError) as raised:
        make()
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partition: gpu\n", "'account' is missing"),
        ("account: a\npartition: p\nacount: b\n", "unknown key 'acount'; the nearest valid name is 'account'"),
        (
            "account: a\npartition: p\nenvironment: {HF_TOKEN: x}\n",
            "HF_TOKEN looks like a secret, which belongs in no file",
        ),
        ("account: a\npartition: p\nsetup: [export HF_TOKEN=hf_x]\n", "HF_TOKEN looks like a secret"),
        ("account: a\npartition: p\nsbatch: {export: HF_TOKEN=x}\n", "HF_TOKEN looks like a secret"),
        ("account: a\npartition: p\nsbatch: {dependency: x}\n", "dependency is set by the launcher"),
        ("account: a\npartition: p\nmounts: [/x]\n", "mounts need images"),
        ("account: a\npartition: p\nimages: {a: b}\nmounts: [x]\n", "x: write /path, or /path/on/node:/path/inside"),
        ("- account\n", "a cluster file is a mapping of keys"),
    ],
)
def test_cluster_file_refusals(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as raised:
        load_cluster(path)
    assert message in str(raised.value)
    assert str(path) in str(raised.value)


def test_variables_are_text_whatever_their_case(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text(
        "account: a\npartition: p\nsetup: ['export HF_HOME=$HF_TOKEN_DIR']\n"
        "environment: {TOKENIZERS_PARALLELISM: 'false', http_proxy: 'a b', OMP_NUM_THREADS: 8}\n"
    )
    cluster = load_cluster(path)
    assert cluster.environment == {"TOKENIZERS_PARALLELISM": "false", "http_proxy": "a b", "OMP_NUM_THREADS": "8"}
    steps, recipe = steps_and_recipe("parallel.data=2")
    script = scripts(recipe, jobs_of(recipe, steps, cluster), cluster)["report"]
    assert "export http_proxy='a b'\nexport OMP_NUM_THREADS=8\nset -e\nexport HF_HOME=$HF_TOKEN_DIR\nset +e\n" in script


@pytest.mark.parametrize("home", ["/lustre/me/nemo_run", "/lustre/my home"])
def test_home_that_nemo_run_cannot_work_in(monkeypatch: pytest.MonkeyPatch, home: str) -> None:
    monkeypatch.setattr("nemo_run.config._NEMORUN_HOME", home)
    steps, recipe = steps_and_recipe()
    cluster = ClusterConfig(account="a", partition="p")
    with pytest.raises(UserError, match="choose another NEMORUN_HOME"):
        scripts(recipe, jobs_of(recipe, steps, cluster), cluster)


def test_the_grace_period_follows_what_steps_and_saves_took(tmp_path: Path) -> None:
    """A step has to end and a checkpoint to be written between the signal and the limit."""
    steps, recipe = steps_and_recipe(f"run_dir={tmp_path}")
    stage = steps["train_low_temperature"]
    assert measured_grace_period(stage) == 0
    stage.folder.mkdir(parents=True)
    (stage.folder / "metrics.jsonl").write_text('{"step": 1, "seconds": 90.0}\n{"step": 2, "seconds": 60.0}\n{"st')
    (stage.folder / "saves.jsonl").write_text('{"step": 1, "seconds": 210.0}\n')
    assert measured_grace_period(stage) == 450
    cluster = load_cluster(EXAMPLE)
    for job in jobs_of(recipe, steps, cluster):
        assert job.grace_period_seconds == (450 if job.step.kind.name == "train" else 30)


def test_what_took_long_once_does_not_count_for_ever(tmp_path: Path) -> None:
    steps, _ = steps_and_recipe(f"run_dir={tmp_path}")
    stage = steps["train_low_temperature"]
    stage.folder.mkdir(parents=True)
    steps_took, saves_took = [900.0] + [2.0] * 100, [600.0] + [10.0] * 5
    for name, took in (("metrics.jsonl", steps_took), ("saves.jsonl", saves_took)):
        (stage.folder / name).write_text("".join(json.dumps({"seconds": value}) + "\n" for value in took))
    assert measured_grace_period(stage) == 18


def test_a_job_without_time_to_train_says_so(tmp_path: Path) -> None:
    """In place of one that is stopped, requeued and stopped again after a few steps, for days."""
    steps, _ = steps_and_recipe(f"run_dir={tmp_path}")
    stage = steps["train_low_temperature"]
    stage.folder.mkdir(parents=True)
    (stage.folder / "saves.jsonl").write_text('{"step": 1, "seconds": 70.0}\n')
    message = r"105 seconds before its time limit, and the job has \d+; raise launch\.training\.time"
    with pytest.raises(UserError, match=message), EarlyStop(stage, time.time() + 60, lambda: None):
        pytest.fail("the job began")


def test_a_first_stage_is_stopped_by_what_it_has_shown_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm's signal was timed at submission, before any save was known."""
    monkeypatch.setattr("dasd_megatron.slurm.grace_period.POLL", 0.01)
    steps, _ = steps_and_recipe(f"run_dir={tmp_path}")
    stage = steps["train_low_temperature"]
    stopped = threading.Event()
    with EarlyStop(stage, time.time() + 100, stopped.set):
        assert not stopped.wait(0.1)
        stage.folder.mkdir(parents=True)
        (stage.folder / "saves.jsonl").write_text('{"step": 1, "seconds": 70.0}\n')
        assert stopped.wait(5)


def test_jobs_wait_for_what_they_read_and_nothing_else() -> None:
    steps, recipe = steps_and_recipe()
    after = {job.step.name: job.after for job in jobs_of(recipe, steps, load_cluster(EXAMPLE))}
    assert after["benchmark_arithmetic"] == ()
    assert after["train_low_temperature"] == ("pack_low_temperature", "import_student")
    assert after["train_high_temperature"] == ("pack_high_temperature", "train_low_temperature")
    assert after["export_low_temperature"] == ("train_low_temperature",)
    assert set(after["report"]) == {name for name in steps if name.startswith("grade_")}


def test_time_limits_are_slurms() -> None:
    for text in ("00:01:00", "23:59:59", "2-01:00:00"):
        assert time_limit(seconds(text)) == text
    assert time_limit(seconds("100:00:00")) == "4-04:00:00"
    assert seconds("1-00:00:01") == 86_401


def test_on_another_machine_nothing_is_checked_here() -> None:
    recipe = load_recipe(TOY / "recipe.yaml", ["teacher.model=/cluster/teacher", "student.model=/cluster/student"])
    steps = build_steps(recipe, remote=True)
    assert not any(step.done for step in steps.values())
    tunnel = {"host": "login", "user": "me", "job_dir": "/cluster/jobs"}
    cluster = ClusterConfig.model_validate({"account": "a", "partition": "p", "gpus_per_node": 2, "tunnel": tunnel})
    with pytest.raises(UserError, match="run_dir=runs/toy: give an absolute path on login"):
        with_absolute_paths(recipe, cluster)
    made = scripts(recipe, jobs_of(recipe, steps, cluster), cluster)
    assert "#SBATCH --output=/cluster/jobs/toy/toy_TIME/report/" in made["report"]

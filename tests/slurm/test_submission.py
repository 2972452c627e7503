"""What is submitted, what is refused, and what never leaves the environment."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from secrets import token_hex

import pytest

from dasd_megatron.runtime.submission_record import SUBMISSION
from dasd_megatron.utils.lease import hold
from tests.conftest import ROOT
from tests.helpers.small_run import RECIPE, artifacts, small_run
from tests.slurm.conftest import Site

# Not written here, since this file is shipped.
CANARY = f"canary-{token_hex(8)}"
PROMPTS = ["--only", "benchmark_arithmetic"]


def check_refused(code: int, out: str, errors: str, message: str) -> None:
    assert code == 2, out + errors
    assert message in errors
    assert "Traceback" not in out + errors


def queued(site: Site) -> list[str]:
    return site.cluster.run("squeue", "-h", "-o", "%i").split()


def test_a_step_of_200_shards_is_one_job(site: Site, calm: Path, tmp_path: Path, recorded_sbatch: Path) -> None:
    """And its command lines are those of a step of 10 shards."""
    calls = []
    for size in (1, 20):
        folder = tmp_path / f"run-{size}"
        (folder / "artifacts").mkdir(parents=True)
        overrides = ["prompts.train.limit=200", f"sampling.prompts_per_shard={size}", f"run_dir={folder}"]
        code, out, errors = site.finish(
            *small_run(folder), *overrides, "--only", "prompts_train", "--only", "benchmark_arithmetic"
        )
        assert code == 0, out + errors
        recorded_sbatch.unlink()
        # A job that can't start yet: what is counted is its submission.
        site.settings["sbatch"] = {"begin": "now+1hour"}
        sample = [*small_run(folder), *overrides, "--only", "sample_low_temperature", "--detach"]
        code, out, errors = site.finish(*sample)
        assert code == 0, out + errors
        calls.append(recorded_sbatch.read_text().splitlines())
        recorded_sbatch.unlink()
        assert len(queued(site)) == 1
        site.cluster.run("scancel", *queued(site))
        del site.settings["sbatch"]
    many, few = calls
    assert len(many) == len(few) == 2  # whether Slurm would take it, and the submission
    assert [len(line.split()) for line in many] == [len(line.split()) for line in few]
    assert max(map(len, many)) < 1000


def test_no_secret_is_written(site: Site, tmp_path: Path, recorded_sbatch: Path) -> None:
    """Jobs have the token; no file of the run, of NeMo-Run's home or of the cluster's logs, and no command line, does."""
    folder = tmp_path / "run"
    site.environment["HF_TOKEN"] = CANARY
    site.settings |= {"secrets": ["HF_TOKEN"], "setup": ['[ "${HF_TOKEN:+set}" = set ] && touch "$HOME/token-arrived"']}
    site.environment["HOME"] = str(tmp_path)
    code, out, errors = site.finish(*small_run(folder), *PROMPTS)
    assert code == 0, out + errors
    assert (tmp_path / "token-arrived").exists()
    assert CANARY not in out + errors + recorded_sbatch.read_text()
    searched = 0
    for place in (folder, site.home, site.cluster.folder / "log"):
        for path in place.rglob("*"):
            if path.is_file():
                searched += 1
                assert CANARY.encode() not in path.read_bytes(), path
    assert searched > 20


def test_a_run_that_is_submitted_already(site: Site, tmp_path: Path) -> None:
    """Refused while its jobs are there, with the name of whoever submitted them; then followed, and resumed."""
    run = [*small_run(tmp_path / "run"), *PROMPTS]
    site.settings["sbatch"] = {"hold": True}
    code, out, errors = site.finish(*run, "--detach")
    assert code == 0, out + errors
    code, out, errors = site.finish(*run)
    submission = json.loads((tmp_path / "run" / SUBMISSION).read_text())
    check_refused(code, out, errors, f"already submitted ({submission['id']} by root from ")
    (job,) = queued(site)
    assert f"{job} benchmark_arithmetic (PENDING, root)" in errors
    assert f"scancel {job}" in errors
    here = [argument for argument in run if argument not in PROMPTS]
    local = subprocess.run(
        [sys.executable, "tools/launch.py", *here],
        cwd=ROOT,
        env=site.cluster.environment,
        capture_output=True,
        text=True,
    )
    check_refused(local.returncode, local.stdout, local.stderr, f"this run is submitted ({submission['id']} by root)")
    watching = site.launch(*run, "--watch")
    assert watching.stdout is not None
    assert watching.stdout.readline() == f"following 1 jobs of {submission['id']}\n"
    assert "held (JobHeldUser); `scontrol release" in watching.stdout.readline()
    site.cluster.run("scontrol", "release", job)
    out, errors = watching.communicate(timeout=120)
    assert watching.returncode == 0, out + errors
    assert f"benchmark_arithmetic (job {job}): COMPLETED" in out
    code, out, errors = site.finish(*run)
    assert (code, "every step is done" in out) == (0, True), errors


def test_two_submissions_at_once(site: Site, tmp_path: Path) -> None:
    with hold(tmp_path / "run" / ".lock", "busy"):
        code, out, errors = site.finish(*small_run(tmp_path / "run"), *PROMPTS)
    check_refused(code, out, errors, "another process is running or submitting this recipe")
    assert f"held by process {os.getpid()} on " in errors
    assert not queued(site)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"partition": "absent"},
            "benchmark_arithmetic: Slurm would refuse the job: invalid partition specified: absent",
        ),
        (
            {"account": "absent"},
            "Slurm would refuse the job: Invalid account or account/partition combination specified",
        ),
        ({"account": None}, "account: Input should be a valid string"),
        ({"reservation": "absent"}, "Slurm would refuse the job: Requested reservation is invalid"),
        ({"images": {"training": "/images/absent.sqsh"}}, "/images/absent.sqsh: no such image on this machine"),
        (
            {"images": {"sampling": "s"}},
            "benchmark_arithmetic: the cluster file lists no image 'training' (images: sampling)",
        ),
        ({"secrets": ["ABSENT_TOKEN"]}, "ABSENT_TOKEN: not set in the environment of this machine"),
    ],
)
def test_refused_by_the_cluster(site: Site, tmp_path: Path, settings: dict[str, object], message: str) -> None:
    site.settings |= settings
    code, out, errors = site.finish(*small_run(tmp_path / "run"), *PROMPTS)
    check_refused(code, out, errors, message)
    assert not queued(site)


def test_watching_tells_how_it_ended(site: Site, tmp_path: Path) -> None:
    """A detached run that failed, the morning after; a new submission resets its count of attempts."""
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"input": \n')
    run = [*small_run(tmp_path / "run"), *PROMPTS, f"evaluation.benchmarks.0.path={bad}"]
    code, out, errors = site.finish(*run, "--detach")
    assert code == 0, out + errors
    site.cluster.wait_for(lambda: not queued(site), "end of the job")
    code, out, errors = site.finish(*run, "--watch")
    assert code == 2
    assert "benchmark_arithmetic: failed, for the reason in its log:" in out
    assert "line 1: not valid JSON" in out
    assert "error: benchmark_arithmetic did not succeed" in errors


def test_a_submission_that_is_interrupted(site: Site, tmp_path: Path, recorded_sbatch: Path) -> None:
    """Ctrl-C between two jobs leaves none of them; kill -9 leaves some, which are found and named."""
    run = small_run(tmp_path / "run")
    site.settings["sbatch"] = {"hold": True}  # none ends before it is looked for
    for number in (signal.SIGINT, signal.SIGKILL):
        recorded_sbatch.unlink(missing_ok=True)
        process = site.launch(*run)
        while not recorded_sbatch.exists() or recorded_sbatch.read_text().count("--parsable") < 4:
            assert process.poll() is None, process.communicate()
            time.sleep(0.01)
        process.send_signal(number)
        out, errors = process.communicate(timeout=60)
        if number == signal.SIGINT:
            assert (process.returncode, "interrupted; the jobs submitted so far were cancelled" in errors) == (2, True)
            site.cluster.wait_for(lambda: not queued(site), "empty queue")
    left = queued(site)
    assert left
    code, out, errors = site.finish(*run)
    check_refused(code, out, errors, "it was interrupted before every job was submitted")
    site.cluster.run("scancel", *left)


def test_a_run_folder_by_another_name(site: Site, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "run")
    site.settings["sbatch"] = {"hold": True}
    code, out, errors = site.finish(*small_run(tmp_path / "run"), *PROMPTS, "--detach")
    assert code == 0, out + errors
    code, out, errors = site.finish(*small_run(tmp_path / "link"), *PROMPTS, "name=other")
    check_refused(code, out, errors, "already submitted")


def test_a_line_of_setup_that_fails(site: Site, tmp_path: Path) -> None:
    site.settings["setup"] = ["module-that-is-absent load cuda"]
    code, out, errors = site.finish(*small_run(tmp_path / "run"), *PROMPTS)
    assert code == 2, out + errors
    assert "module-that-is-absent: command not found" in out
    assert not list((tmp_path / "run").glob("artifacts/*/COMPLETE"))


def test_git_that_refuses_the_clone(site: Site, tmp_path: Path) -> None:
    """Another user's clone: nothing is shipped silently in its place."""
    site.environment["GIT_TEST_ASSUME_DIFFERENT_OWNER"] = "1"
    code, out, errors = site.finish(*small_run(tmp_path / "run"), *PROMPTS)
    check_refused(code, out, errors, "git can't say what is to be shipped: fatal: detected dubious ownership")
    assert not queued(site)


def test_a_run_folder_that_nodes_do_not_share(site: Site, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    with site.without_folder(folder):
        code, out, errors = site.finish(*small_run(folder), *PROMPTS)
    assert code == 2, out + errors
    assert f"error: {folder}: not the run folder that this run was submitted with: {SUBMISSION} isn't there on" in out
    assert "choose a run_dir on a file system that all nodes mount" in out
    assert not list((folder / "artifacts").glob("*/COMPLETE"))


def test_sbatch_is_not_installed(site: Site, tmp_path: Path) -> None:
    empty = tmp_path / "bin"
    empty.mkdir()
    for name in ("sh", "bash", "git", "which"):
        (empty / name).symlink_to(str(shutil.which(name)))
    site.environment["PATH"] = str(empty)
    code, out, errors = site.finish(*small_run(tmp_path / "run"), *PROMPTS)
    check_refused(code, out, errors, "sbatch isn't installed on this machine, or not on its PATH")


def test_nemo_run_is_not_installed(site: Site, tmp_path: Path) -> None:
    script = (
        "import runpy, sys; sys.modules['nemo_run'] = None; del sys.argv[0]; "
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    command = site.command(*small_run(tmp_path / "run"))
    done = subprocess.run(
        [command[0], "-c", script, *command[1:]], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    check_refused(done.returncode, done.stdout, done.stderr, "needs NeMo-Run, which isn't installed: pip install")


def test_changes_are_refused_or_named(site: Site, tmp_path: Path) -> None:
    """In a clone of the product: a changed and a new file."""
    clone = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
    # The tree under test, committed.
    subprocess.run(
        ["git", "-C", str(ROOT), "diff", "HEAD", "--binary", "--output", str(tmp_path / "patch")], check=True
    )
    if (tmp_path / "patch").stat().st_size:
        subprocess.run(["git", "apply", str(tmp_path / "patch")], cwd=clone, check=True)
        subprocess.run(
            ["git", "-c", "user.name=t", "-c", "user.email=t@t", "commit", "-qam", "t"], cwd=clone, check=True
        )
    (clone / "dasd_megatron" / "new.py").write_text("")
    with (clone / "README.md").open("a") as file:
        file.write("changed\n")
    environment = {**site.cluster.environment, "NEMORUN_HOME": str(site.home), "PYTHONPATH": str(clone)}
    folder = tmp_path / "run"
    command = [argument for argument in site.command(*small_run(folder), *PROMPTS) if argument != "--ship-changes"]
    done = subprocess.run(command, cwd=clone, env=environment, capture_output=True, text=True, timeout=120)
    changed = "README.md, dasd_megatron/new.py"
    check_refused(
        done.returncode,
        done.stdout,
        done.stderr,
        f"these differ from the commit that would be shipped: {changed}; commit",
    )
    done = subprocess.run(
        [*command, "--ship-changes"], cwd=clone, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f" with changes in {changed}" in done.stdout
    (shipped,) = (site.home / "experiments" / "toy").glob("*/source")
    assert (shipped / "dasd_megatron" / "new.py").exists()
    assert (shipped / "README.md").read_text().endswith("changed\n")
    (manifest,) = (folder / "artifacts").glob("benchmark_arithmetic-*/manifest.json")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=clone, capture_output=True, text=True).stdout.strip()
    assert json.loads(manifest.read_text())["source"] == {"commit": commit, "changed": changed.split(", ")}


def test_nemo_run_entry_point(site: Site, tmp_path: Path) -> None:
    """`nemorun dasd distil` submits as tools/launch.py does."""
    file = site.command()[5]
    overrides = " ".join(small_run(tmp_path / "run")[1:])
    command = [str(Path(sys.executable).parent / "nemorun"), "dasd", "distil", "--yes", "--dryrun"]
    command += [f"recipe={RECIPE}", f"cluster={file}", f"overrides='{overrides}'"]
    environment = {**site.cluster.environment, "NEMORUN_HOME": str(site.home)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("#SBATCH --partition=batch") == len(artifacts(tmp_path / "run"))


def test_a_step_without_its_inputs(site: Site, tmp_path: Path) -> None:
    code, out, errors = site.finish(*small_run(tmp_path / "run"), "--only", "train_low_temperature")
    check_refused(
        code, out, errors, "train_low_temperature needs packs of the step pack_low_temperature, which isn't finished"
    )


def test_a_full_run_folder(site: Site, small_disk: object) -> None:
    """The step says so, fails, and resumes once there is room."""
    folder = small_disk("16k")  # type: ignore[operator]
    code, out, errors = site.finish(*small_run(folder / "run"), *PROMPTS, "evaluation.benchmarks.0.limit=1000")
    assert code == 2, out + errors
    assert "the disk is full; free some space and run the same command again" in out
    subprocess.run(["mount", "-o", "remount,size=4m", str(folder)], check=True)
    code, out, errors = site.finish(*small_run(folder / "run"), *PROMPTS, "evaluation.benchmarks.0.limit=1000")
    assert code == 0, out + errors


def test_a_read_only_run_folder(site: Site, small_disk: object) -> None:
    folder = small_disk("64k")  # type: ignore[operator]
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    started = time.monotonic()
    code, out, errors = site.finish(*small_run(folder / "run"), *PROMPTS)
    check_refused(code, out, errors, "can't be written")
    assert time.monotonic() - started < 60


def test_a_controller_that_is_away(site: Site, tmp_path: Path) -> None:
    """Nothing is submitted, and the message says so."""
    site.cluster.kill_controller()
    code, out, errors = site.finish(*small_run(tmp_path / "run"), "--only", "benchmark_arithmetic")
    assert code == 2, out + errors
    assert "error: Slurm doesn't answer: " in errors
    assert "Traceback" not in out + errors

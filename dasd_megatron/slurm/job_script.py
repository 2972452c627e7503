"""What a job's script does around its step, in bash: it ends the job as the first node's outcome says (node_main.py)."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence

# In a job's folder: how its step stands, and a line for each attempt since the last one that got further.
OUTCOME, ATTEMPTS = "outcome", "attempts"
# Variable: when the time limit is reached, in seconds since the epoch. Slurm's own, SLURM_JOB_END_TIME, is newer than 22.05.
ENDS = "DASD_JOB_ENDS"
# What the script exits with after too many attempts.
TOO_MANY = 3

# A node whose name means itself on it alone can be reached by that name from the others.
_ADDRESS = """\
case "$MASTER_ADDR" in 127.*) getent hosts "$head_node" > /dev/null && export MASTER_ADDR=$head_node ;; esac
"""
# NeMo-Run starts a step in its job's folder `code`, as a container sees it, too.
_TREE = """\
[ -L {folder}/code ] || {{ rmdir {folder}/code; ln -s {tree} {folder}/code; }}
"""
# `scontrol requeue` ends the script; the sleep keeps it from ending by itself before.
_END = """\
rm -f {folder}/{OUTCOME}
end() {{
    case "$(cat {folder}/{OUTCOME} 2> /dev/null)" in
        done) exit 0 ;;
        failed) exit 2 ;;
        "") exit 1 ;;  # the step never began; the log says why
    esac
    # Told to stop before the time limit, or lost: the step resumes in a new allocation.
    echo again >> {folder}/{ATTEMPTS}
    [ "$(wc -l < {folder}/{ATTEMPTS})" -le {retries} ] || exit {TOO_MANY}
    scontrol requeue "$SLURM_JOB_ID" && sleep 600
    exit 75
}}
trap end EXIT
# Slurm ends the job: cancelled, pre-empted, requeued by someone, or out of time.
trap 'trap - EXIT; exit 143' TERM
"""


def setup_lines(
    folder: str, tree: str | None, environment: Mapping[str, str], setup: Sequence[str], seconds: int, retries: int
) -> str:
    """Lines before the step's srun: variables, the site's own lines, the shipped tree as working directory, how the job ends.

    `folder`: the job's on the cluster; `tree`: None where none is shipped; `seconds`: the time limit; `retries`: attempts in
    a row that may get no further.
    """
    folder = shlex.quote(folder)
    lines = [
        _ADDRESS,
        f"export {ENDS}=$(($(date +%s) + {seconds}))",
        *(f"export {name}={shlex.quote(value)}" for name, value in environment.items()),
    ]
    if setup:
        lines += ["set -e", *setup, "set +e"]  # one that fails ends the job
    if tree is not None:
        lines.append(_TREE.format(folder=folder, tree=shlex.quote(tree)))
    names = {"OUTCOME": OUTCOME, "ATTEMPTS": ATTEMPTS, "TOO_MANY": TOO_MANY}
    return "\n".join([*lines, _END.format(folder=folder, retries=retries, **names)])

"""What a job's script does around its step, in bash: it ends the job as the first node's verdict says (launch/node.py)."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

VERDICT = "verdict"

# `scontrol requeue` ends the script; the sleep keeps it from ending by itself before.
_END = """\
verdict={folder}/{VERDICT}
rm -f "$verdict"
end() {{
    case "$(cat "$verdict" 2> /dev/null)" in
        done) exit 0 ;;
        failed) exit 2 ;;
        "") exit 1 ;;  # the step never began; the log says why
    esac
    # Told to stop before the time limit, or lost: the step goes on in a new allocation.
    scontrol requeue "$SLURM_JOB_ID" && sleep 600
    exit 75
}}
trap end EXIT
# Slurm ends the job: cancelled, pre-empted, requeued by someone, or out of time.
trap 'trap - EXIT; exit 143' TERM
"""


# NeMo-Run starts a step in its job's folder `code`, as a container sees it, too.
_TREE = """\
[ -L {folder}/code ] || {{ rmdir {folder}/code; ln -s {tree} {folder}/code; }}
"""


def setup_lines(folder: str, tree: str | None, setup: Sequence[str]) -> str:
    """Lines before the step's srun: the site's own, the shipped tree as working directory, and how the job ends.

    `folder`: the job's on the cluster; `tree`: None where none is shipped.
    """
    folder = shlex.quote(folder)
    shipped = [] if tree is None else [_TREE.format(folder=folder, tree=shlex.quote(tree))]
    return "\n".join([*setup, *shipped, _END.format(folder=folder, VERDICT=VERDICT)])

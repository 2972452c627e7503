"""NeMo-Run's entry point: `nemorun dasd distil --yes recipe=RECIPE.yaml cluster=CLUSTER.yaml`."""

# No `from __future__ import annotations`: NeMo-Run reads the annotations as types.
import shlex
from pathlib import Path

import nemo_run as run

from dasd_megatron.slurm.submit import SubmitOptions, submit
from dasd_megatron.utils.errors import UserError


@run.cli.entrypoint(namespace="dasd", type="experiment")  # type: ignore[untyped-decorator]
def distil(ctx: run.cli.RunContext, recipe: str, cluster: str, overrides: str = "") -> None:
    """Submits a recipe's steps to a Slurm cluster, as `dasd launch --executor slurm` does.

    Args:
        ctx: NeMo-Run's; --dryrun prints the jobs, --detach returns once they are submitted.
        recipe: the recipe file.
        cluster: the cluster file.
        overrides: settings that replace the recipe's, `key=value`, separated by spaces.
    """
    request = SubmitOptions(
        Path(recipe), shlex.split(overrides), Path(cluster), dry_run=bool(ctx.dryrun), detach=bool(ctx.detach)
    )
    try:
        code = submit(request)
    except UserError as error:
        raise SystemExit(f"error: {error}") from None
    raise SystemExit(code)

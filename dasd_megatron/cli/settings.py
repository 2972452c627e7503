"""Prints every setting of a recipe, of a cluster file or of a study file, with its type, its default and its meaning.

examples:
  {prog}
  {prog} training
  {prog} --cluster
  {prog} --study
  {prog} --schema > recipe.schema.json
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Sequence

# Title and introduction of each page.
PAGES = {
    "recipe": (
        "Settings",
        "Every setting of a recipe. `dasd settings` prints the same; `key=value` on a command line overrides any.",
    ),
    "cluster": (
        "Cluster file",
        "Every setting of a cluster file, which says where a site's Slurm finds what recipes need. `dasd settings --cluster` "
        "prints the same.",
    ),
    "study": (
        "Study file",
        "Every setting of a study file, which runs a recipe in several arms and seeds ([studies.md](studies.md)). "
        "`dasd settings --study` prints the same.",
    ),
}


def main(prog: str, arguments: Sequence[str]) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description=(__doc__ or "").format(prog=prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("section", nargs="?", default="", help="only this section or setting, such as training.fp8")
    file = parser.add_mutually_exclusive_group()
    file.add_argument("--cluster", action="store_true", help="of a cluster file in place of a recipe")
    file.add_argument("--study", action="store_true", help="of a study file in place of a recipe")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="as a page of the documentation")
    form.add_argument("--schema", action="store_true", help="as a JSON schema, for completion and checks in editors")
    args = parser.parse_args(arguments)
    if args.section and (args.markdown or args.schema):
        parser.error("--markdown and --schema print all settings: leave out the section")
    from dasd_megatron.config import reference
    from dasd_megatron.config.base import Config
    from dasd_megatron.config.recipe import Recipe
    from dasd_megatron.config.study import StudyConfig
    from dasd_megatron.slurm.cluster_config import ClusterConfig

    kind = "cluster" if args.cluster else "study" if args.study else "recipe"
    configs: dict[str, type[Config]] = {"recipe": Recipe, "cluster": ClusterConfig, "study": StudyConfig}
    config = configs[kind]
    if args.schema:
        text = reference.as_json_schema(config)
    elif args.markdown:
        text = reference.as_markdown(config, *PAGES[kind]).rstrip()
    else:
        text = reference.as_text(config, args.section)
    if not text:
        near = difflib.get_close_matches(args.section, reference.keys(config), n=1, cutoff=0.5)
        nearest = f"; the nearest is {near[0]!r}" if near else ""
        print(f"error: no setting or section is called {args.section!r}{nearest}", file=sys.stderr)
        return 2
    print(text)
    return 0

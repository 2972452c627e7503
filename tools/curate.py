#!/usr/bin/env python
"""Runs one step that filters, selects or packs responses.

Its inputs must be done; `tools/launch.py RECIPE --dry-run` lists the steps.

examples:
  python tools/curate.py examples/toy/recipe.yaml --step filter_low_temperature
  python tools/curate.py examples/toy/recipe.yaml --step select_high_temperature selection.method=random
"""

import sys

from dasd_megatron.launch.tool import step_tool

KINDS = ("filter", "select", "pack")

if __name__ == "__main__":
    sys.exit(step_tool(__doc__, KINDS))

#!/usr/bin/env python
"""Runs one step that measures a model on held-out problems, or writes the report.

Its inputs must be done; `tools/launch.py RECIPE --dry-run` lists the steps.

examples:
  python tools/evaluate.py examples/toy/recipe.yaml --step evaluate_student
  python tools/evaluate.py examples/toy/recipe.yaml --step report
"""

import sys

from dasd_megatron.launch.tool import step_tool

KINDS = ("evaluate", "report")

if __name__ == "__main__":
    sys.exit(step_tool(__doc__, KINDS))

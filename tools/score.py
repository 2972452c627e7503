#!/usr/bin/env python
"""Runs one step that scores the teacher's responses under the student.

Its inputs must be done; `tools/launch.py RECIPE --dry-run` lists the steps.

examples:
  python tools/score.py examples/toy/recipe.yaml --step score_low_temperature
"""

import sys

from dasd_megatron.launch.tool import step_tool

KINDS = ("score",)

if __name__ == "__main__":
    sys.exit(step_tool(__doc__, KINDS))

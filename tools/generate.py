#!/usr/bin/env python
"""Runs one step that reads prompts or samples responses.

Its inputs must be done; `tools/launch.py RECIPE --dry-run` lists the steps.

examples:
  python tools/generate.py examples/toy/recipe.yaml --step sample_low_temperature
  python tools/generate.py examples/toy/recipe.yaml --step answer_mixed_policy launch.replicas=1
"""

import sys

from dasd_megatron.launch.tool import step_tool

KINDS = ("prompts", "sample", "answer", "continue")

if __name__ == "__main__":
    sys.exit(step_tool(__doc__, KINDS))

#!/usr/bin/env python
"""Runs one training stage, with torchrun where the recipe's layout has several ranks.

Its packs and start checkpoint must be done; `tools/launch.py RECIPE --dry-run` lists the steps.

examples:
  python tools/train.py examples/toy/recipe.yaml --stage low_temperature
  python tools/train.py examples/toy/recipe.yaml --stage high_temperature parallel.data=1 parallel.tensor=2
"""

import sys

from dasd_megatron.launch.tool import step_tool

KINDS = ("train",)

if __name__ == "__main__":
    sys.exit(step_tool(__doc__, KINDS, option="--stage", prefix="train_"))

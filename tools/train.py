#!/usr/bin/env python
"""Runs one training stage, with torchrun where the recipe's layout has several ranks; or says beforehand what it will take.

To run, its packs and start checkpoint must be done; `tools/launch.py RECIPE --dry-run` lists the steps. SIGTERM or SIGUSR1
saves and exits with 75; the same command goes on.

examples:
  python tools/train.py examples/toy/recipe.yaml --stage low_temperature
  python tools/train.py examples/toy/recipe.yaml --stage high_temperature parallel.data=1 parallel.tensor=2
  python tools/train.py examples/toy/recipe.yaml --stage low_temperature --estimate --gpu h100
  python tools/train.py examples/toy/recipe.yaml --stage low_temperature --dry-run parallel.data=32 training.global_batch=32
"""

import sys

from dasd_megatron.launch.training_tool import main

if __name__ == "__main__":
    sys.exit(main(__doc__))

#!/usr/bin/env python
"""The same as `dasd score`."""

import sys

from dasd_megatron.cli.score import main

if __name__ == "__main__":
    sys.exit(main("python tools/score.py", sys.argv[1:]))

#!/usr/bin/env python
"""The same as `dasd evaluate`."""

import sys

from dasd_megatron.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main("python tools/evaluate.py", sys.argv[1:]))

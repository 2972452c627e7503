#!/usr/bin/env python
"""The same as `dasd train`."""

import sys

from dasd_megatron.cli.train import main

if __name__ == "__main__":
    sys.exit(main("python tools/train.py", sys.argv[1:]))

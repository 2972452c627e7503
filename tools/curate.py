#!/usr/bin/env python
"""The same as `dasd curate`."""

import sys

from dasd_megatron.cli.curate import main

if __name__ == "__main__":
    sys.exit(main("python tools/curate.py", sys.argv[1:]))

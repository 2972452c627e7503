#!/usr/bin/env python
"""The same as `dasd generate`."""

import sys

from dasd_megatron.cli.generate import main

if __name__ == "__main__":
    sys.exit(main("python tools/generate.py", sys.argv[1:]))

#!/usr/bin/env python
"""The same as `dasd convert`."""

import sys

from dasd_megatron.cli.convert import main

if __name__ == "__main__":
    sys.exit(main("python tools/convert.py", sys.argv[1:]))

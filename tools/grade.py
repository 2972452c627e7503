#!/usr/bin/env python
"""The same as `dasd grade`."""

import sys

from dasd_megatron.cli.grade import main

if __name__ == "__main__":
    sys.exit(main("python tools/grade.py", sys.argv[1:]))

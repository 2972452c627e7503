#!/usr/bin/env python
"""The same as `dasd launch`."""

import sys

from dasd_megatron.cli.launch import main

if __name__ == "__main__":
    sys.exit(main("python tools/launch.py", sys.argv[1:]))

"""Runs a module under the stand-in: python -m tests.helpers.te_on_cpu.run MODULE ARGUMENTS"""

from __future__ import annotations

import os
import runpy
import sys


def main() -> None:
    from tests.helpers.te_on_cpu.install import install
    from tests.helpers.te_on_cpu.packages import packages

    # Processes that the module starts by itself find what they need there.
    os.environ["TE_ON_CPU"] = os.pathsep.join(map(str, packages()))
    install(packages())
    sys.argv = sys.argv[1:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

"""torchrun without its traceback: a rank that failed has said why, and torchrun's own report would bury it.

python -m dasd_megatron.launch.ranks TORCHRUN_ARGUMENTS
"""

from __future__ import annotations

import logging
import sys

from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun


def main() -> int:
    """Runs torchrun in this process; returns the exit code of the first rank that failed."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        torchrun()
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return int(failure.exitcode) if failure.exitcode > 0 else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""torchrun without its traceback, and with stop signals: a rank that failed has said why, and one told to stop has to save.

torchrun's report would bury the one, and its answer to a signal, ending the ranks within 30 seconds, would truncate the other.

python -m dasd_megatron.runtime.torchrun TORCHRUN_ARGUMENTS
"""

from __future__ import annotations

import logging
import sys

import psutil
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main as torchrun

from dasd_megatron.utils.child_process import forward_signals
from dasd_megatron.utils.errors import Stopped
from dasd_megatron.utils.stop_signals import SIGNALS


def main() -> int:
    """Runs torchrun in this process; returns the exit code of the first rank that failed."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        with forward_signals(lambda: [child.pid for child in psutil.Process().children()]):
            torchrun(["--signals-to-handle", "SIGINT,SIGHUP,SIGQUIT", *sys.argv[1:]])
    except Stopped:
        return Stopped.EXIT_CODE
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        if -failure.exitcode in SIGNALS:  # it came before the rank listened: nothing was trained that could be lost
            return Stopped.EXIT_CODE
        return int(failure.exitcode) if failure.exitcode > 0 else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Ranks that start at once: forked from a process that imported the trainer before, which takes seconds each time.

For tests of what ranks compute. Those of how ranks start, end and are told to stop use torchrun.

    forked("tests.helpers.watched_ranks", [file], ranks=2)
"""

from __future__ import annotations

import functools
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from dasd_megatron.utils.child_process import die_with
from tests.conftest import ROOT


def forked(
    module: str,
    arguments: Sequence[str],
    ranks: int = 1,
    environment: Mapping[str, str] | None = None,
    timeout: int = 300,
) -> tuple[int, str]:
    """Runs a module as __main__ on each rank; the first exit code that isn't 0, if any, and what they printed."""
    variables = {**environment_of_ranks(), **(environment or {})}
    server = _server(variables.get("TE_ON_CPU"))
    request = {"module": module, "arguments": list(arguments), "ranks": ranks, "environment": variables}
    assert server.stdin is not None
    assert server.stdout is not None
    server.stdin.write(json.dumps(request) + "\n")
    server.stdin.flush()
    with selectors.DefaultSelector() as selector:
        selector.register(server.stdout, selectors.EVENT_READ)
        if not selector.select(timeout):
            server.kill()  # and with it its ranks
            _server.cache_clear()
            raise TimeoutError(f"{module} has run for more than {timeout} seconds")
    answer = json.loads(server.stdout.readline() or '{"code": 1, "output": "the process that forks ranks is gone"}')
    return answer["code"], answer["output"]


def environment_of_ranks() -> dict[str, str]:
    """This process's, without what Megatron sets where a model is built: a stage takes that for the user's choice."""
    return {name: value for name, value in os.environ.items() if not name.startswith("NVTE_")}


@functools.cache
def _server(te_on_cpu: str | None) -> subprocess.Popen[str]:
    parent = os.getpid()
    return subprocess.Popen(
        [sys.executable, "-m", __name__],
        cwd=ROOT,
        env={**environment_of_ranks(), **({"TE_ON_CPU": te_on_cpu} if te_on_cpu else {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: die_with(parent),
    )


def serve() -> None:
    """Answers requests, one a line, until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what else prints doesn't answer
    if "TE_ON_CPU" in os.environ:
        from tests.helpers.te_on_cpu.install import install_if_asked

        install_if_asked()

    for line in sys.stdin:
        print(json.dumps(_run(**json.loads(line))), file=answers, flush=True)


def _run(module: str, arguments: Sequence[str], ranks: int, environment: Mapping[str, str]) -> dict[str, Any]:
    with tempfile.TemporaryFile() as output:
        layout = {
            "WORLD_SIZE": ranks,
            "LOCAL_WORLD_SIZE": ranks,
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": _free_port(),
        }
        pids = set()
        for rank in range(ranks):
            own = {"RANK": rank, "LOCAL_RANK": rank, **layout} if ranks > 1 else {}
            pids.add(
                _fork(module, arguments, {**environment, **{name: str(value) for name, value in own.items()}}, output)
            )
        code = 0
        while pids:
            pid, status = os.wait()
            pids.discard(pid)
            if status and not code:
                code = os.waitstatus_to_exitcode(status)
                for other in pids:
                    os.kill(other, signal.SIGKILL)
        output.seek(0)
        return {"code": code, "output": output.read().decode(errors="replace")[-20000:]}


def _fork(module: str, arguments: Sequence[str], environment: Mapping[str, str], output: Any) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        die_with(parent)
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
        os.environ.update(environment)
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__")
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    serve()

"""A vLLM server of a replica's own, on loopback, which ends with the replica."""

from __future__ import annotations

import os
import re
import secrets
import socket
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from dasd_megatron.config.sampling import EngineConfig
from dasd_megatron.sampling.engines.vllm_settings import vllm_arguments, vllm_environment
from dasd_megatron.utils.errors import UserError
from dasd_megatron.utils.process_group import start_group

# What `vllm serve` runs; the command itself asks for a distribution that is called vllm, which vLLM's build for CPUs is not.
SERVE = "from vllm.entrypoints.launchers.api_server.entry import main; main()"
# Seconds between looks whether it is up, or has ended.
LOOK = 0.5
# Lines of its log that say why it ended; the second kind only points to the first.
_REASON = re.compile(r"(?:^|[\])] )(?:(\w*(?:Error|Exception): .+)|.* error: (.+))", re.MULTILINE)
_CONSEQUENCE = "Engine core initialization failed"


class VllmServer:
    """Is up when it has been made. Its key keeps other users of the machine out.

    Raises UserError where it ends before that.
    """

    def __init__(self, model: Path, config: EngineConfig) -> None:
        port, self.key = _free_port(), secrets.token_hex(16)
        self.url = f"http://127.0.0.1:{port}/v1"
        command = [sys.executable, "-c", SERVE, "--host", "127.0.0.1", "--port", str(port)]
        command += ["--disable-uvicorn-access-log", *vllm_arguments(model, config)]
        environment = {
            "VLLM_LOGGING_LEVEL": "WARNING",
            **os.environ,
            **vllm_environment(config),
            "VLLM_API_KEY": self.key,
        }
        # Without a name, so that nothing is left of it; it gets one where the server fails.
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = start_group(command, environment, self._log)
        while not self._is_up():
            if self._process.poll() is not None:
                raise UserError(self._why(model))
            time.sleep(LOOK)
        self._model = model

    def watch(self, ended: Callable[[str], None]) -> None:
        """Calls `ended` with the reason, from a thread, when the server has ended."""

        def wait() -> None:
            self._process.wait()
            ended(self._why(self._model))

        threading.Thread(target=wait, name="vLLM server", daemon=True).start()

    def _is_up(self) -> bool:
        try:
            urllib.request.urlopen(f"{self.url.removesuffix('/v1')}/health", timeout=LOOK).close()
        except (OSError, urllib.error.URLError):
            return False
        return True

    def _why(self, model: Path) -> str:
        self._log.seek(0)
        text = self._log.read().decode(errors="replace")
        found = [first or second for first, second in _REASON.findall(text) if _CONSEQUENCE not in first]
        reason = found[-1].strip() if found else f"exit code {self._process.returncode}"
        with tempfile.NamedTemporaryFile("w", prefix="dasd-vllm-server-", suffix=".log", delete=False) as log:
            log.write(text)
        return f"{model}: vLLM's server ended: {reason}; its log is {log.name}"


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port

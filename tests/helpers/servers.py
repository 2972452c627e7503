"""Real `vllm serve` processes on loopback, and a proxy that fails as networks and busy servers do."""

from __future__ import annotations

import asyncio
import os
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from aiohttp import ClientSession, ClientTimeout, web

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port


def vllm_distribution(folder: Path) -> Path:
    """A folder for PYTHONPATH in which vllm-cpu goes by the name of vllm, which its command looks for."""
    info = folder / "vllm-0.32.0+cpu.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n")
    return folder


class VllmServer:
    """`vllm serve MODEL`, ready when it returns; closed at the end of the context."""

    def __init__(self, model: Path, folder: Path, *options: str, key: str | None = None) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(model), "--port", str(self.port)]
        command += ["--host", "127.0.0.1", "--dtype", "float32", "--enforce-eager", "--max-num-seqs", "32"]
        command += ["--no-enable-chunked-prefill", *options]
        path = f"{vllm_distribution(folder)}:{os.environ.get('PYTHONPATH', '')}"
        environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": path}
        if key is not None:
            environment["VLLM_API_KEY"] = key
        self._log = folder / f"server-{self.port}.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait(self) -> None:
        """Until it answers."""
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            assert self._process.poll() is None, self._log.read_text()[-3000:]
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
            except OSError:
                time.sleep(0.5)
            else:
                return
        raise AssertionError(self._log.read_text()[-3000:])

    def kill(self) -> None:
        """For good."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, 9)
        self._process.wait()


class FaultProxy:
    """Passes requests on to a server; a share of them is answered 429 or 500, never, or by cutting the connection.

    `strip`: keys of choices that are left out of the answers.
    """

    def __init__(self, target: str, faults: float = 0.0, strip: tuple[str, ...] = ()) -> None:
        self._target, self._faults, self._strip = target.removesuffix("/v1"), faults, strip
        self._chance = random.Random(0)
        self.seen: Counter[str] = Counter()
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(30)

    async def _start(self) -> None:
        app = web.Application(client_max_size=1 << 30)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port).start()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        fault = "none"
        if request.path.endswith("/completions") and self._chance.random() < self._faults:
            fault = self._chance.choice(["429", "500", "silence", "cut"])
        self.seen[fault] += 1
        if fault in ("429", "500"):
            return web.json_response({"error": {"message": "a fault"}}, status=int(fault))
        if fault == "silence":
            await asyncio.sleep(3600)
        body = await request.read()
        try:
            async with ClientSession(timeout=ClientTimeout(600)) as session:
                headers: Mapping[str, str] = {
                    name: value for name, value in request.headers.items() if name in ("Authorization", "Content-Type")
                }
                address = f"{self._target}{request.path}"
                async with session.request(request.method, address, data=body, headers=headers) as answer:
                    content = await answer.read()
                    if fault == "cut":  # after the server has done its work
                        assert request.transport is not None
                        request.transport.close()
                        return web.Response()
                    if self._strip and answer.status == 200 and request.path.endswith("/completions"):
                        return web.json_response(self._stripped(await answer.json()))
                    return web.Response(body=content, status=answer.status, content_type="application/json")
        except OSError:
            assert request.transport is not None
            request.transport.close()
            return web.Response()

    def _stripped(self, content: dict[str, list[dict[str, object]]]) -> dict[str, list[dict[str, object]]]:
        for choice in content["choices"]:
            for key in self._strip:
                choice.pop(key, None)
        return content

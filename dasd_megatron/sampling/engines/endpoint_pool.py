"""A pool of OpenAI-compatible servers: each request is answered once, by whichever of them can."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from dasd_megatron.utils.errors import UserError

# Answers of a server that is busy or unwell; another try may succeed.
RETRIED = {408, 425, 429, 500, 502, 503, 504}
BUSY = 429
# Tries of a request that servers fail at, one after the other, before it counts as the request's fault.
TRIES = 10
# Failures in a row before a server counts as down; and seconds until it is asked again, at first and at most.
FAILURES, FIRST_PAUSE, LONGEST_PAUSE = 3, 1.0, 60.0
# Seconds for a server to accept a connection, and to say what it serves.
CONNECT, QUICK = 10.0, 30.0


@dataclass(eq=False)
class Endpoint:
    """A server.

    Attributes:
        in_flight: requests that it has at the moment.
        failures: in a row.
        down_until: on the monotonic clock; asked for nothing before.
        reason: why it failed last.
    """

    url: str
    in_flight: int = 0
    failures: int = 0
    down_until: float = 0.0
    reason: str = ""

    def failed(self, reason: str) -> None:
        """Counts a failure."""
        self.failures, self.reason = self.failures + 1, reason
        if self.failures >= FAILURES:
            pause = min(FIRST_PAUSE * 2 ** (self.failures - FAILURES), LONGEST_PAUSE)
            if self.failures == FAILURES:
                print(f"warning: {self.url} is down ({reason}); it is asked again later", file=sys.stderr, flush=True)
            self.down_until = time.monotonic() + pause

    def answered(self) -> None:
        """It is well."""
        if self.failures >= FAILURES:
            print(f"{self.url} is back", file=sys.stderr, flush=True)
        self.failures, self.down_until = 0, 0.0


class EndpointPool:
    """Servers that run the same model. To be used in one event loop."""

    def __init__(self, urls: Sequence[str], key: str | None, each: int, timeout: float, patience: float) -> None:
        """`each`: most requests that a server has at a time; the others in seconds (see ServerConfig)."""
        self.endpoints = [Endpoint(url.rstrip("/")) for url in urls]
        self._each, self._timeout, self._patience = each, timeout, patience
        self._answered = time.monotonic()
        self._ended: str | None = None
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self._client = httpx.AsyncClient(headers=headers, limits=limits, trust_env=False)

    def end(self, reason: str) -> None:
        """Every request that is left fails for this reason. From any thread."""
        self._ended = reason

    @property
    def capacity(self) -> int:
        """Requests that all servers together take at a time."""
        return self._each * len(self.endpoints)

    async def get(self, path: str) -> Mapping[str, Any]:
        """What the first server to answer says; waits for one that is just starting. Raises UserError."""
        return await self._ask("GET", path, None, QUICK)

    async def post(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """The answer to a request. Raises UserError where it is refused, or nobody answers."""
        return await self._ask("POST", path, body, self._timeout)

    async def _ask(self, method: str, path: str, body: Mapping[str, Any] | None, seconds: float) -> Mapping[str, Any]:
        tries, reason, timeout = 0, "", httpx.Timeout(seconds, connect=CONNECT)
        while tries < TRIES:
            endpoint = await self._free()
            endpoint.in_flight += 1
            try:
                response = await self._client.request(method, endpoint.url + path, json=body, timeout=timeout)
                if response.status_code == 200:
                    content = self._content(endpoint, response)
                    endpoint.answered()
                    self._answered = time.monotonic()
                    return content
                reason = _refusal(response)
                if response.status_code not in RETRIED:
                    raise UserError(f"{endpoint.url}{path}: {reason}{_remedy(response.status_code)}")
                tries += 1
                if response.status_code == BUSY:
                    self._answered = time.monotonic()
                else:
                    endpoint.failed(reason)
            except httpx.ConnectError as error:  # no fault of the request's
                endpoint.failed(f"no connection: {error}")
            except httpx.HTTPError as error:
                tries, reason = tries + 1, f"{type(error).__name__} {error}".strip()
                endpoint.failed(reason)
            finally:
                endpoint.in_flight -= 1
            await asyncio.sleep(_pause(tries))
        raise UserError(f"servers failed {tries} times at the same request, the last time with: {reason}")

    async def _free(self) -> Endpoint:
        """The server with fewest requests that can take one more."""
        while True:
            if self._ended is not None:
                raise UserError(self._ended)
            now = time.monotonic()
            if now - self._answered > self._patience and all(endpoint.failures for endpoint in self.endpoints):
                reasons = "; ".join(f"{endpoint.url}: {endpoint.reason}" for endpoint in self.endpoints)
                raise UserError(
                    f"no server has answered for {self._patience:g} s ({reasons}); start them, or correct "
                    "engine.server.endpoints"
                )
            free = [
                endpoint
                for endpoint in self.endpoints
                if endpoint.in_flight < self._each and endpoint.down_until <= now
            ]
            if free:
                least = min(endpoint.in_flight for endpoint in free)
                return random.choice([endpoint for endpoint in free if endpoint.in_flight == least])
            await asyncio.sleep(0.05)

    def _content(self, endpoint: Endpoint, response: httpx.Response) -> Mapping[str, Any]:
        try:
            content = response.json()
        except ValueError:
            content = None
        if not isinstance(content, dict):
            raise UserError(
                f"{response.url}: no JSON object came back, so {endpoint.url} is no OpenAI-compatible server; its address mostly "
                "ends in /v1"
            )
        return content


def _refusal(response: httpx.Response) -> str:
    """What a server says about a request that it doesn't answer."""
    try:
        content = response.json()
        error = content.get("error", content)
        message = str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError):
        message = response.text
    return f"{response.status_code} {response.reason_phrase}: {' '.join(message.split())[:300]}"


def _remedy(status: int) -> str:
    if status in (401, 403):
        return "; engine.server.api_key_variable names the environment variable that holds the key"
    if status == 404:
        return "; an OpenAI-compatible server's address mostly ends in /v1, and engine.server.model is a name that it serves"
    return ""


def _pause(tries: int) -> float:
    """Seconds before the next try: longer each time, and different for all that failed together."""
    return random.uniform(0.5, 1.0) * min(0.1 * float(2**tries), 30.0)

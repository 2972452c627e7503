"""A pool of OpenAI-compatible servers: each request is answered once, by whichever of them can."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import httpx

from dasd_megatron.sampling.engines.served_model import Ask
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
        checked: whether it is known to be fit.
        checking: held while that is found out.
    """

    url: str
    in_flight: int = 0
    failures: int = 0
    down_until: float = 0.0
    reason: str = ""
    checked: bool = False
    checking: asyncio.Lock = field(default_factory=asyncio.Lock)

    def failed(self, reason: str) -> None:
        """Counts a failure."""
        self.failures, self.reason = self.failures + 1, reason
        if self.failures >= FAILURES:
            pause = min(FIRST_PAUSE * 2 ** (self.failures - FAILURES), LONGEST_PAUSE)
            if self.failures == FAILURES:
                state = "is down" if self.checked else "doesn't answer yet"
                print(f"warning: {self.url} {state} ({reason}); it is asked again later", file=sys.stderr, flush=True)
            self.down_until = time.monotonic() + pause

    def answered(self) -> None:
        """It is well."""
        if self.failures >= FAILURES:
            print(f"{self.url} answers", file=sys.stderr, flush=True)
        self.failures, self.down_until = 0, 0.0


@dataclass(frozen=True)
class _Failure:
    """Of a request at a server. `of_the_request`: whether it may be the request's own fault."""

    reason: str
    of_the_request: bool


class _Unwell(Exception):
    """A server answers that it can't, at the moment."""

    def __init__(self, reason: str, busy: bool) -> None:
        super().__init__(reason)
        self.busy = busy


class EndpointPool:
    """Servers that run the same model. To be used in one event loop."""

    def __init__(
        self,
        urls: Sequence[str],
        key: str | None,
        each: int,
        timeout: float,
        patience: float,
        check: Callable[[str, Ask], Awaitable[None]],
    ) -> None:
        """A pool of the servers at `urls`.

        Args:
            each: most requests that a server has at a time.
            timeout, patience: in seconds, see ServerConfig.
            check: raises UserError for a server that isn't fit; called with its address and what asks it, before anything else.
        """
        self.endpoints = [Endpoint(url.rstrip("/")) for url in urls]
        self._each, self._timeout, self._patience = each, timeout, patience
        self._check = check
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

    async def start(self) -> None:
        """Checks every server that answers; waits for the first one. Raises UserError."""
        self._answered = time.monotonic()
        await asyncio.gather(*map(self._attempt, self.endpoints))
        while not any(endpoint.checked for endpoint in self.endpoints):
            await self._attempt(await self._free())
            await asyncio.sleep(_pause(1))

    async def post(self, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """The answer to a request. Raises UserError where it is refused, or nobody answers."""
        tries, reason = 0, ""
        while tries < TRIES:
            found = await self._attempt(await self._free(), path, body)
            if not isinstance(found, _Failure):
                return found
            if found.of_the_request:
                tries, reason = tries + 1, found.reason
            await asyncio.sleep(_pause(tries))
        raise UserError(f"servers failed {tries} times at the same request, the last time with: {reason}")

    async def _attempt(
        self, endpoint: Endpoint, path: str | None = None, body: Mapping[str, Any] | None = None
    ) -> Mapping[str, Any] | _Failure:
        """What a server answers; without a path it is only checked. Raises UserError where it refuses, or isn't fit."""
        endpoint.in_flight += 1
        try:
            async with endpoint.checking:
                if not endpoint.checked:
                    await self._check(endpoint.url, partial(self._once, endpoint))
                    endpoint.checked = True
            found = {} if path is None else await self._once(endpoint, "POST", path, body)
        except httpx.ConnectError as error:
            endpoint.failed(f"no connection: {error}")
            return _Failure(endpoint.reason, of_the_request=False)
        except _Unwell as error:
            if error.busy:
                self._answered = time.monotonic()
            else:
                endpoint.failed(str(error))
            return _Failure(str(error), of_the_request=True)
        except httpx.HTTPError as error:
            endpoint.failed(f"{type(error).__name__} {error}".strip())
            return _Failure(endpoint.reason, of_the_request=True)
        finally:
            endpoint.in_flight -= 1
        endpoint.answered()
        self._answered = time.monotonic()
        return found

    async def _once(
        self, endpoint: Endpoint, method: str, path: str, body: Mapping[str, Any] | None
    ) -> Mapping[str, Any]:
        """Raises UserError, _Unwell, or httpx's errors."""
        seconds = min(QUICK, self._patience) if body is None else self._timeout
        timeout = httpx.Timeout(seconds, connect=min(CONNECT, seconds))
        response = await self._client.request(method, endpoint.url + path, json=body, timeout=timeout)
        if response.status_code == 200:
            return self._content(endpoint, response)
        reason = _refusal(response)
        if response.status_code in RETRIED:
            raise _Unwell(reason, response.status_code == BUSY)
        raise UserError(f"{endpoint.url}{path}: {reason}{_remedy(response.status_code)}")

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
                if endpoint.in_flight < (self._each if endpoint.checked else 1) and endpoint.down_until <= now
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

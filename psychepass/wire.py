"""HTTP to an OpenAI-compatible endpoint: one request, and what came of it. The key is hidden in all that comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx

from psychepass.answers import Transport, Tried, classify
from psychepass.completion import parse_body
from psychepass.endpoint import Endpoint

KEEPALIVE_S = 4.0  # below the 5 s after which common servers close an idle connection, perhaps while it is taken up
CHECK_TIMEOUT_S = 20.0


class Wire:
    """The connections to one endpoint. Making one raises UserError where a variable of the key or the address is not
    set."""

    def __init__(self, endpoint: Endpoint):
        from openai import AsyncOpenAI, DefaultAioHttpClient

        self._timeout_s, self._secret = endpoint.timeout_s, endpoint.key() if endpoint.key_env else None
        limits: Any = httpx.Limits(max_connections=endpoint.max_concurrent, keepalive_expiry=KEEPALIVE_S)
        self._client = AsyncOpenAI(
            api_key=endpoint.key(),
            base_url=endpoint.address(),
            max_retries=0,
            timeout=endpoint.timeout_s,
            http_client=DefaultAioHttpClient(limits=limits),  # httpx's own pool is slow at 1,000 connections
        )
        # else read from the environment and sent to whatever address this is
        self._client.organization = self._client.project = None

    async def close(self) -> None:
        await self._client.close()

    async def complete(self, body: dict[str, Any]) -> Tried:
        """One chat completion."""
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        try:
            async with asyncio.timeout(self._timeout_s):
                response = await self._client.post("/chat/completions", body=body, cast_to=httpx.Response)
            tried = classify(response.status_code, response.headers, self._scrub_body(response.content))
        except APIStatusError as e:
            tried = classify(e.status_code, e.response.headers, self._scrub_body(e.response.content))
        except (TimeoutError, APIConnectionError) as e:
            late = isinstance(e, TimeoutError | APITimeoutError) and not _found_nobody(e)
            detail = f"no answer within {self._timeout_s:g} s" if late else self._told(e)
            outcome = "time-out" if late else "connection"
            return Tried(outcome, error=Transport, detail=detail, again=True, billed=not _unsent(e))
        return replace(tried, detail=self._scrub(tried.detail))

    async def models(self) -> dict[str, Any] | int | str:
        """The server's list of models ({} where it is none), the status with which it refuses one, or, where nobody
        answers, why."""
        from openai import APIConnectionError, APIStatusError

        try:
            async with asyncio.timeout(min(CHECK_TIMEOUT_S, self._timeout_s)):
                response = await self._client.get("/models", cast_to=httpx.Response)
            return parse_body(response.content) or {}
        except APIStatusError as e:
            return e.status_code
        except (TimeoutError, APIConnectionError) as e:
            return self._told(e)

    def _told(self, error: Exception) -> str:
        return self._scrub(_cause(error))[:200]

    def _scrub_body(self, data: bytes) -> bytes:
        """Before anything is cut off: half of a key would not be found any more."""
        return data.replace(self._secret.encode(), b"[key]") if self._secret else data

    def _scrub(self, text: str) -> str:
        """Servers and libraries repeat what they were sent."""
        return text.replace(self._secret, "[key]") if self._secret else text


def _found_nobody(error: Exception) -> bool:
    """Refused, or no such address. openai's transport calls this a time-out too."""
    from aiohttp import ClientConnectorError

    return any(isinstance(e, ClientConnectorError) for e in _chain(error))


def _unsent(error: Exception) -> bool:
    """Nothing can be billed. A connection that broke later, or an answer that was waited for, may have carried it."""
    from aiohttp import ConnectionTimeoutError

    return _found_nobody(error) or any(isinstance(e, ConnectionTimeoutError) for e in _chain(error))


def _chain(error: BaseException | None) -> Iterator[Exception]:
    while isinstance(error, Exception):
        yield error
        error = error.__cause__


def _cause(error: Exception) -> str:
    """The innermost reason, without what it was about, in one line."""
    *_, innermost = _chain(error)
    told = " ".join(str(innermost).split())
    return f"{type(innermost).__name__}: {told}" if told else type(innermost).__name__

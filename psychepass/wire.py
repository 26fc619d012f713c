"""HTTP to an OpenAI-compatible endpoint: one request, and what came of it. The key is hidden in all that comes back."""

from __future__ import annotations

import asyncio
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
            tried = classify(response.status_code, response.headers, response.content)
        except APIStatusError as e:
            tried = classify(e.status_code, e.response.headers, e.response.content)
        except (TimeoutError, APITimeoutError) as e:
            detail = f"no answer within {self._timeout_s:g} s"
            return Tried("time-out", error=Transport, detail=detail, again=True, billed=_was_sent(e))
        except APIConnectionError as e:
            return Tried("connection", error=Transport, detail=self._scrub(_cause(e)), again=True, billed=_was_sent(e))
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
            return self._scrub(_cause(e))

    def _scrub(self, text: str) -> str:
        """Servers and libraries repeat what they were sent."""
        return text.replace(self._secret, "[key]") if self._secret else text


def _was_sent(error: Exception) -> bool:
    return not isinstance(error.__cause__, httpx.ConnectError | httpx.ConnectTimeout)


def _cause(error: Exception) -> str:
    """The innermost reason, without what it was about, in one line."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    told = " ".join(str(error).split())
    return f"{type(error).__name__}: {told}"[:200] if told else type(error).__name__

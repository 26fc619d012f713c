"""Requests and tokens a minute: each request is told when it may start."""

from __future__ import annotations

import asyncio
import time

MINUTE_S = 60.0


class Pace:
    """Starts are spread evenly, without bursts, so that no minute holds more than the limits.

    Tokens are booked by estimate before a request and corrected after it. One event loop only.
    """

    def __init__(self, requests_per_minute: int | None, tokens_per_minute: int | None):
        self._request_s = MINUTE_S / requests_per_minute if requests_per_minute else 0.0
        self._token_s = MINUTE_S / tokens_per_minute if tokens_per_minute else 0.0
        self._next_request = self._next_token = 0.0

    async def start(self, tokens: int) -> None:
        """Wait for this request's turn; the order is that of the calls."""
        now = time.monotonic()
        begin = max(now, self._next_request, self._next_token)
        self._next_request = begin + self._request_s
        self._next_token = begin + tokens * self._token_s
        if begin > now:
            await asyncio.sleep(begin - now)

    def correct(self, tokens: int) -> None:
        """So many tokens more (or fewer, below 0) than were booked."""
        self._next_token += tokens * self._token_s

    def hold(self, seconds: float) -> None:
        """No request starts before `seconds` have passed: the server said so."""
        self._next_request = max(self._next_request, time.monotonic() + seconds)

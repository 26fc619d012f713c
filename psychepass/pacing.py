"""Requests and tokens a minute: each request waits until it may start; slower where the server says 429."""

from __future__ import annotations

import asyncio
import time

MINUTE_S = 60.0
LOOK_S = 0.25  # the longest time until one that waits sees a hold or a correction
FIRST_SLOW_S, LONGEST_SLOW_S = 0.005, 6.0  # between two requests, where the server sets a limit that no config names
SLOWER, FASTER = 2.0, 0.85  # factors of that time at a 429 and at a reply: even where one try in five gets a 429


class Pace:
    """Starts are spread evenly, without bursts, so that no minute holds more than the limits.

    Tokens are booked by estimate when a request starts and corrected after it. One event loop only.
    """

    def __init__(self, requests_per_minute: int | None = None, tokens_per_minute: int | None = None):
        self._request_s = self._token_s = 0.0  # what the limits permit
        self._between_s = 0.0  # what is kept between two requests now; never less
        self._next_request = self._next_token = 0.0
        self._slowed_at, self._served = 0.0, False
        self._turn = asyncio.Lock()
        self.limit(requests_per_minute, tokens_per_minute)

    def limit(self, requests_per_minute: int | None, tokens_per_minute: int | None) -> None:
        """Keep these limits too: of several the lowest holds; None is no limit."""
        if requests_per_minute:
            self._request_s = max(self._request_s, MINUTE_S / requests_per_minute)
            self._between_s = max(self._between_s, self._request_s)
        if tokens_per_minute:
            self._token_s = max(self._token_s, MINUTE_S / tokens_per_minute)

    async def start(self, tokens: int) -> None:
        """Wait for this request's turn; the order is that of the calls."""
        came = time.monotonic()
        async with self._turn:
            while (wait_s := max(self._next_request, self._next_token) - time.monotonic()) > 0:
                await asyncio.sleep(min(wait_s, LOOK_S))
            # those that queue keep their rhythm, though each wakes up a little late
            due = max(came, self._next_request, self._next_token, time.monotonic() - LOOK_S)
            self._next_request = due + self._between_s
            self._next_token = due + tokens * self._token_s

    def correct(self, tokens: int) -> None:
        """So many tokens more (or fewer, below 0) than were booked."""
        self._next_token += tokens * self._token_s

    def hold(self, seconds: float) -> None:
        """No request starts before `seconds` have passed: the server said so."""
        self._next_request = max(self._next_request, time.monotonic() + seconds)

    def slow_down(self, begun: float, callers: int) -> None:
        """A request that began at `begun` (s, monotonic) got a 429. Only what began at the present pace counts.

        Where no reply has come since it was last slowed down, a round of all `callers` is still over in a minute: a
        server that answers nobody is given up soon.
        """
        if begun < self._slowed_at:
            return
        longest = LONGEST_SLOW_S if self._served else min(LONGEST_SLOW_S, MINUTE_S / callers)
        slower = min(max(SLOWER * self._between_s, FIRST_SLOW_S), longest)
        self._between_s = max(slower, self._between_s)
        self._slowed_at, self._served = time.monotonic(), False

    def speed_up(self, begun: float) -> None:
        """A request that began at `begun` was answered; the pace comes back to the limits little by little."""
        if begun >= self._slowed_at:
            self._served = True
            faster = FASTER * self._between_s
            self._between_s = max(faster if faster >= FIRST_SLOW_S / SLOWER else 0.0, self._request_s)

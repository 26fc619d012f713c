"""Requests and tokens a minute where many wait: in order, at the rate, and seeing what was said meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from psychepass.endpoint import Endpoint
from psychepass.ledger import Ledger
from psychepass.pacing import FIRST_SLOW_S, LONGEST_SLOW_S, SLOWER, Pace


def starts(pace: Pace, n: int, tokens: int, meanwhile: Callable[[], Awaitable[None]] | None = None) -> list[float]:
    """Seconds from the beginning to the start of each of `n` requests that come at once, in the order they came."""

    async def run() -> list[float]:
        begun, at = time.monotonic(), [0.0] * n

        async def one(i: int) -> None:
            await pace.start(tokens)
            at[i] = time.monotonic() - begun

        await asyncio.gather(*map(one, range(n)), *([meanwhile()] if meanwhile else ()))
        return at

    return asyncio.run(run())


def test_a_burst_starts_in_order_and_at_the_rate() -> None:
    at = starts(Pace(6000), 60, 1)  # one in 10 ms
    assert at == sorted(at)
    assert all(t > 0.01 * i - 0.001 for i, t in enumerate(at)) and at[-1] < 0.59 + 0.2


def test_a_hold_holds_those_that_queue_already() -> None:
    pace = Pace(1200)  # one in 50 ms

    async def hold() -> None:
        await asyncio.sleep(0.12)
        pace.hold(0.4)

    at = starts(pace, 8, 1, hold)
    assert not [t for t in at if 0.16 < t < 0.5] and sum(t > 0.5 for t in at) == 5
    after = [t for t in at if t > 0.5]
    assert after[-1] - after[0] > 4 * 0.05 - 0.02


def test_a_correction_lets_those_that_queue_start_earlier() -> None:
    pace = Pace(None, 60_000)  # a token takes 1 ms

    async def correct() -> None:
        await asyncio.sleep(0.05)
        pace.correct(-1900)

    first, second = starts(pace, 2, 2000, correct)
    assert first < 0.05 and 0.1 < second < 0.6  # it looks again within 0.25 s


def test_one_that_gives_up_its_turn_holds_nobody_up() -> None:
    async def run() -> float:
        pace, begun = Pace(600), time.monotonic()  # one in 100 ms
        await pace.start(1)
        left = asyncio.create_task(pace.start(1))
        await asyncio.sleep(0.02)
        left.cancel()
        await pace.start(1)
        return time.monotonic() - begun

    assert 0.09 < asyncio.run(run()) < 0.18


def test_the_pace_slows_once_a_429_within_bounds_and_comes_back_to_the_limits() -> None:
    async def between(pace: Pace) -> float:
        pace._next_request = 0.0
        await pace.start(1)
        return pace._next_request - time.monotonic()

    async def run() -> None:
        for configured_s, pace in ((0.0, Pace()), (0.1, Pace(600))):
            begun = time.monotonic()
            for _ in range(50):  # all sent before the first of them was told
                pace.slow_down(begun, 60)
            once = max(FIRST_SLOW_S, SLOWER * configured_s)
            assert abs(await between(pace) - once) < 0.01
            for _ in range(100):
                pace.slow_down(time.monotonic(), 60)
            assert abs(await between(pace) - 1.0) < 0.01  # nobody was answered: 60 callers have a minute together
            for _ in range(10):
                pace.speed_up(time.monotonic())
                pace.slow_down(time.monotonic(), 60)
            assert abs(await between(pace) - LONGEST_SLOW_S) < 0.01
            pace.speed_up(begun)  # asked at another pace: says nothing of this one
            assert abs(await between(pace) - LONGEST_SLOW_S) < 0.01
            for _ in range(400):
                pace.speed_up(time.monotonic())
            assert abs(await between(pace) - configured_s) < 0.01
        slow = Pace(5)  # slower than any slowing down
        slow.slow_down(time.monotonic(), 60)
        assert abs(await between(slow) - 12.0) < 0.01

    asyncio.run(run())


def test_a_server_that_turns_away_one_try_in_ten_whatever_the_pace_is_not_slowed_for_long() -> None:
    async def run() -> float:
        pace, begun = Pace(), time.monotonic()
        for i in range(500):
            await pace.start(1)
            (pace.speed_up(time.monotonic()) if i % 10 else pace.slow_down(time.monotonic(), 60))
        return time.monotonic() - begun

    assert asyncio.run(run()) < 50 * 0.05


def test_clients_of_one_model_and_key_share_the_lowest_limits(tmp_path: Path) -> None:
    def given(**change: Any) -> Endpoint:
        return Endpoint.model_validate(
            {"base_url": "http://h/v1", "model": "m", "price": {"input": 0, "output": 0}} | change
        )

    with Ledger(tmp_path / "l.jsonl") as ledger:
        pace = ledger.pace(given(requests_per_minute=6000))
        assert ledger.pace(given(requests_per_minute=1200, extra={"top_k": 1}, timeout_s=9.0)) is pace
        assert ledger.pace(given()) is pace
        assert ledger.pace(given(key_env="OTHER")) is not pace and ledger.pace(given(model="n")) is not pace
    assert starts(pace, 5, 1)[-1] > 4 * 0.05 - 0.01

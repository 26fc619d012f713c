"""Requests and tokens a minute where many wait: in order, at the rate, and seeing what was said meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from psychepass.endpoint import Endpoint
from psychepass.ledger import Ledger
from psychepass.pacing import FIRST_SLOW_S, LONGEST_SLOW_S, LOOK_S, SLOWER, Pace
from tests.fake_clock import FakeClock, clock

__all__ = ["clock"]  # a fixture

EPSILON_S = 1e-6


def starts(
    clock: FakeClock, pace: Pace, n: int, tokens: int, meanwhile: Callable[[], Awaitable[None]] | None = None
) -> list[float]:
    """Seconds from the beginning to the start of each of `n` requests that come at once, in the order they came."""

    async def run() -> list[float]:
        begun, at = clock.now_s, [0.0] * n

        async def one(i: int) -> None:
            await pace.start(tokens)
            at[i] = clock.now_s - begun

        await asyncio.gather(*map(one, range(n)), *([meanwhile()] if meanwhile else ()))
        return at

    return clock.run(run())


def test_a_burst_starts_in_order_and_at_the_rate(clock: FakeClock) -> None:
    at = starts(clock, Pace(6000), 60, 1)  # one in 10 ms
    assert at == pytest.approx([0.01 * i for i in range(60)], abs=EPSILON_S)


def test_those_that_wake_up_late_keep_the_rhythm(clock: FakeClock) -> None:
    async def stall() -> None:
        await asyncio.sleep(0.105)
        clock.now_s += 0.2  # the machine does something else

    at = starts(clock, Pace(6000), 60, 1, stall)
    assert at[10:31] == pytest.approx([0.1, *[0.305] * 20], abs=EPSILON_S)  # what is overdue starts at once
    assert at[31:] == pytest.approx([0.01 * i for i in range(31, 60)], abs=EPSILON_S)


def test_a_hold_holds_those_that_queue_already(clock: FakeClock) -> None:
    pace = Pace(1200)  # one in 50 ms

    async def hold() -> None:
        await asyncio.sleep(0.12)
        pace.hold(0.4)

    at = starts(clock, pace, 8, 1, hold)
    assert at == pytest.approx([0.0, 0.05, 0.1, 0.52, 0.57, 0.62, 0.67, 0.72], abs=EPSILON_S)


def test_a_correction_lets_those_that_queue_start_earlier(clock: FakeClock) -> None:
    pace = Pace(None, 60_000)  # a token takes 1 ms

    async def correct() -> None:
        await asyncio.sleep(0.05)
        pace.correct(-1900)

    first, second = starts(clock, pace, 2, 2000, correct)
    assert first == 0 and second == pytest.approx(LOOK_S)


def test_one_that_gives_up_its_turn_holds_nobody_up(clock: FakeClock) -> None:
    async def run() -> float:
        pace, begun = Pace(600), clock.now_s  # one in 100 ms
        await pace.start(1)
        left = asyncio.create_task(pace.start(1))
        await asyncio.sleep(0.02)
        left.cancel()
        await pace.start(1)
        return clock.now_s - begun

    assert clock.run(run()) == pytest.approx(0.1)


def test_the_pace_slows_once_a_429_within_bounds_and_comes_back_to_the_limits(clock: FakeClock) -> None:
    async def between(pace: Pace) -> float:
        pace._next_request = 0.0
        await pace.start(1)
        return pace._next_request - clock.now_s

    async def run() -> None:
        for configured_s, pace in ((0.0, Pace()), (0.1, Pace(600))):
            begun = clock.now_s
            clock.now_s += 0.1
            for _ in range(50):  # all sent before the first of them was told
                pace.slow_down(begun, 60)
            once = max(FIRST_SLOW_S, SLOWER * configured_s)
            assert await between(pace) == pytest.approx(once)
            for _ in range(100):
                pace.slow_down(clock.now_s, 60)
            assert await between(pace) == pytest.approx(1.0)  # nobody was answered: 60 callers have a minute together
            for _ in range(10):
                pace.speed_up(clock.now_s)
                pace.slow_down(clock.now_s, 60)
            assert await between(pace) == pytest.approx(LONGEST_SLOW_S)
            pace.speed_up(begun)  # asked at another pace: says nothing of this one
            assert await between(pace) == pytest.approx(LONGEST_SLOW_S)
            for _ in range(400):
                pace.speed_up(clock.now_s)
            assert await between(pace) == pytest.approx(configured_s)
        slow = Pace(5)  # slower than any slowing down
        slow.slow_down(clock.now_s, 60)
        assert await between(slow) == pytest.approx(12.0)

    clock.run(run())


def test_a_server_that_turns_away_one_try_in_ten_whatever_the_pace_is_not_slowed_for_long(clock: FakeClock) -> None:
    async def run() -> float:
        pace, begun = Pace(), clock.now_s
        for i in range(500):
            await pace.start(1)
            (pace.speed_up(clock.now_s) if i % 10 else pace.slow_down(clock.now_s, 60))
        return clock.now_s - begun

    assert clock.run(run()) < 50 * 0.05


def test_clients_of_one_model_and_key_share_the_lowest_limits(tmp_path: Path, clock: FakeClock) -> None:
    def given(**change: Any) -> Endpoint:
        return Endpoint.model_validate(
            {"base_url": "http://h/v1", "model": "m", "price": {"input": 0, "output": 0}} | change
        )

    with Ledger(tmp_path / "l.jsonl") as ledger:
        pace = ledger.pace(given(requests_per_minute=6000))
        assert ledger.pace(given(requests_per_minute=1200, extra={"top_k": 1}, timeout_s=9.0)) is pace
        assert ledger.pace(given()) is pace
        assert ledger.pace(given(key_env="OTHER")) is not pace and ledger.pace(given(model="n")) is not pace
    assert starts(clock, pace, 5, 1)[-1] == pytest.approx(4 * 0.05)

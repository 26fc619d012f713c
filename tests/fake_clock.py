"""Time that passes only while a program waits: a stall of the machine takes none of it, and a test no time at all."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

from psychepass import pacing

T = TypeVar("T")


class FakeClock:
    """Seconds; event loops made here sleep by setting them forward."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s

    def run(self, program: Coroutine[Any, Any, T]) -> T:
        """As asyncio.run. The program may only compute and sleep: nobody outside of it can wake it."""
        with asyncio.Runner(loop_factory=lambda: _Loop(self)) as runner:
            return runner.run(program)


class _Loop(asyncio.SelectorEventLoop):
    def __init__(self, clock: FakeClock) -> None:
        super().__init__(_Selector(clock))
        self.time = clock.monotonic


class _Selector(selectors.SelectSelector):
    def __init__(self, clock: FakeClock) -> None:
        super().__init__()
        self.clock = clock

    def select(self, timeout: float | None = None) -> Any:
        self.clock.now_s += max(timeout or 0.0, 0.0)
        return super().select(0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """The time of psychepass.pacing, and of what `clock.run` runs."""
    made = FakeClock()
    monkeypatch.setattr(pacing, "time", SimpleNamespace(monotonic=made.monotonic))
    return made

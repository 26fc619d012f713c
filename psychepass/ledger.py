"""What model calls cost: one line a try in a JSONL file, and a budget that stops before it is passed; their pace."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from psychepass.endpoint import Endpoint
from psychepass.errors import UserError
from psychepass.pacing import Pace
from psychepass.records import drop_torn_line
from psychepass.schema import Frozen


class BudgetSpent(UserError):
    """The next call might pass the budget; nothing was sent."""


class Call(Frozen):
    """One try of one call, answered or not. `about` says what for.

    `outcome` is ok, a fault of the reply (psychepass/completion.py), or why there was none (429, time-out, ...).
    Tokens are the server's count, or an estimate where `counted` is false: so too of an answer that was cut off and,
    the prompt's alone, of a time-out or a broken connection, because a provider may bill them. Another try without an
    answer has none. `price` is US dollars a million tokens, input and output.
    """

    time: str
    about: str
    base_url: str
    model: str
    served_model: str = ""
    attempt: int
    outcome: str
    detail: str = ""
    finish: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    counted: bool = True
    seconds: float
    price: tuple[float, float]
    cost_usd: float = 0.0


class Ledger:
    """The calls of one stage, appended to `path`; `budget_usd` bounds what the file's lines cost together.

    One event loop only. A call that a kill cut off has no line, though a provider may bill it.

    >>> with Ledger(run_dir / "ledger_simulate.jsonl", budget_usd=5.0) as ledger:   # doctest: +SKIP
    ...     llm = ChatClient(endpoint, ledger)
    """

    def __init__(self, path: str | Path, budget_usd: float | None = None):
        self.path, self.budget_usd = Path(path), budget_usd
        self.path.parent.mkdir(parents=True, exist_ok=True)
        drop_torn_line(self.path)
        self.spent_usd = sum(c.cost_usd for c in read_calls(self.path)) if self.path.exists() else 0.0
        self._reserved_usd, self._under_way, self._stopped = 0.0, 0, ""
        self._settled = asyncio.Event()
        self._paces: dict[tuple[str, str, str | None], Pace] = {}
        self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    @asynccontextmanager
    async def room(self, usd: float) -> AsyncIterator[None]:
        """Around one try, with what it may cost at most set aside; `add` books what it did cost.

        Waits for tries under way where only they leave too little.

        Raises:
            BudgetSpent: too little is left and nothing is under way; from then on at every call.
        """
        while not self._stopped and self._is_short(usd):
            if self._under_way:
                self._settled.clear()
                await self._settled.wait()
                continue
            self._stopped = (
                f"budget_usd is {self.budget_usd}, {self.spent_usd:.6g} are spent ({self.path}) and the next "
                f"call may cost {usd:.6g}; raise budget_usd and call again to go on"
            )
        if self._stopped:
            raise BudgetSpent(self._stopped)
        self._reserved_usd += usd
        self._under_way += 1
        try:
            yield
        finally:
            self._reserved_usd -= usd
            self._under_way -= 1
            self._settled.set()

    def _is_short(self, usd: float) -> bool:
        # money is summed in another order when it is read back: a billionth of a dollar is no difference
        left = math.inf if self.budget_usd is None else self.budget_usd - self.spent_usd - self._reserved_usd
        return usd > left + 1e-9

    def add(self, call: Call) -> None:
        data = (call.model_dump_json() + "\n").encode()
        while data:
            data = data[os.write(self._fd, data) :]
        self.spent_usd += call.cost_usd

    def pace(self, endpoint: Endpoint) -> Pace:
        """One for all clients of an address, model and key, which the provider counts together; the lowest limits."""
        pace = self._paces.setdefault((endpoint.base_url, endpoint.model, endpoint.key_env), Pace())
        pace.limit(endpoint.requests_per_minute, endpoint.tokens_per_minute)
        return pace

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def read_calls(path: str | Path) -> Iterable[Call]:
    """Raises UserError at a line that is not a call."""
    with Path(path).open("rb") as f:
        for number, line in enumerate(f, start=1):
            try:
                yield Call.model_validate_json(line)
            except ValidationError as e:
                raise UserError(f"{path}, line {number}: not a call of the ledger: {line[:80]!r}") from e


def spent_usd(path: str | Path) -> float:
    """What the calls of a ledger have cost; nothing where there is none."""
    return sum(c.cost_usd for c in read_calls(path)) if Path(path).is_file() else 0.0

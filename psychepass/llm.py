"""Models behind OpenAI-compatible endpoints: ask, and get a reply or an error that says what to do.

    with Ledger(run.dir / "ledger_simulate.jsonl", config.budget_usd) as ledger:
        async with ChatClient(endpoint, ledger) as llm:
            await llm.check()                                   # before any call: key, address, model
            reply = await llm.chat(messages, sampling, seed=1, about="session 12ab, turn 3")
            reply.text, reply.cut_off, reply.usage

One client serves any number of tasks of one event loop and holds its endpoint's limits: make one an endpoint and
share it. `chat` tries again by itself on 429, 5xx, time-outs and broken answers, with a line of the ledger for
each try; a 429 slows the client down, and neither it nor a 503 uses up a try while others are answered. What it
raises says what to do with the item at hand:

    Unreadable       an answer came and is no reply, or this prompt alone is refused: ask once more (another seed, or
                     the error shown), then write a Failure record. ContextOverflow is one: a shorter prompt may help.
    Transport        no answer came in several tries, or errors in place of one while nobody else was answered: write
                     nothing, and try again on the next run.
    Refused          the key, the model or a parameter is wrong: a UserError; the client stays closed.
    BudgetSpent      a UserError: stop, and go on when the budget is raised.

`usage` of a reply, and of an Unreadable or Transport, counts every try. The key is read from the environment and
stands in no file, log, record or error.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, NoReturn, Self

from psychepass import booking
from psychepass.answers import CallError, ContextOverflow, Refused, Transport, Tried, Unreadable
from psychepass.endpoint import Endpoint, Price, prompt_tokens
from psychepass.errors import Unreachable, UserError
from psychepass.ledger import BudgetSpent, Call, Ledger
from psychepass.schema import Message, Sampling, Usage
from psychepass.wire import Wire

__all__ = [
    "BudgetSpent",
    "CallError",
    "ChatClient",
    "ContextOverflow",
    "Endpoint",
    "Ledger",
    "Price",
    "Refused",
    "Reply",
    "Transport",
    "Unreadable",
]

TRIES = 10
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 60.0  # doubled each time: two to three minutes of pauses in all
LONGEST_WAIT_S = 300.0  # a server that asks for a longer wait is left for the next run
GIVE_UP_AFTER = 20  # calls in a row without an answer, or refused: the endpoint is left for the next run
BUSY = ("status 429", "status 503")  # use up no try of a call while others are answered,
LONGEST_BUSY_S = 3600.0  # for so long
CHECK_TRIES = 3
MOST_LISTED = 20


@dataclass(frozen=True, slots=True)
class Reply:
    """`text` without thoughts, stripped, never empty; `cut_off`: the token bound ended it."""

    text: str
    reasoning: str
    cut_off: bool
    usage: Usage


class ChatClient:
    """See the module. Making one raises UserError where a variable of the key or the address is not set."""

    def __init__(self, endpoint: Endpoint, ledger: Ledger):
        self.endpoint, self.ledger = endpoint, ledger
        self.closed: CallError | Refused | None = None  # once set, every call raises it
        self._wire, self._pace = Wire(endpoint), ledger.pace(endpoint)
        self._slots = asyncio.Semaphore(endpoint.max_concurrent)
        self._first, self._proven = asyncio.Lock(), False
        self._answered_at = 0.0  # s, monotonic: when a reply last came
        self._taken = set[Sampling]()  # with which a reply came
        self._unanswered = self._turned_down = 0  # calls in a row

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._wire.close()

    async def check(self) -> None:
        """Ask for the server's list of models, which costs nothing.

        Raises:
            UserError: nobody answers at the address (Unreachable), the key is refused, or the list leaves the model
                out. A server without a list is taken on trust.
        """
        told = await self._get_models()
        if self.endpoint.unlisted:
            return
        listed = [str(m["id"]) for m in told.get("data") or () if isinstance(m, dict) and m.get("id")]
        known = {name for full in listed for name in (full, full.removeprefix("models/"))}
        if known and self.endpoint.model not in known:
            shown = ", ".join(sorted(listed)[:MOST_LISTED]) + (", …" if len(listed) > MOST_LISTED else "")
            raise UserError(
                f"{self.endpoint.base_url} has no model {self.endpoint.model!r}; it lists {shown} "
                "(unlisted: true permits one that the list leaves out)"
            )

    async def chat(
        self, messages: Sequence[Message], sampling: Sampling, *, seed: int | None = None, about: str = ""
    ) -> Reply:
        """One reply. `about` names the item in the ledger. Raises as the module says."""
        async with self._slots:
            return await self._ask(messages, sampling, seed, about)

    async def _ask(self, messages: Sequence[Message], sampling: Sampling, seed: int | None, about: str) -> Reply:
        usage, pause_s, body = Usage(), FIRST_PAUSE_S, self._body(messages, sampling, seed)
        asked, used_up, attempt = prompt_tokens(messages), 0, 0
        begun = since = time.monotonic()
        doubted_at = 0.0  # when half of the tries were used up
        while True:
            attempt += 1
            tried, call = await self._once(body, asked, sampling.max_tokens, attempt, about)
            usage += booking.usage_of(call)
            if tried.error is None:
                self._taken.add(sampling)
                found = tried.completion
                return Reply(found.text, found.reasoning, found.finish == "length", usage)
            now = time.monotonic()
            others_are_served = self._answered_at > since and now - begun < LONGEST_BUSY_S
            used_up += not (tried.outcome in BUSY and others_are_served)
            if not doubted_at and used_up >= TRIES // 2:
                doubted_at = now
            if not tried.again or used_up >= TRIES or tried.wait_s > LONGEST_WAIT_S:
                self._fail(self._meaning(tried, sampling, doubted_at), tried, usage)
            if tried.wait_s:
                self._pace.hold(tried.wait_s)
            since = now
            # those told to wait equally long do not come back all at once
            await asyncio.sleep(max(tried.wait_s * random.uniform(1.0, 1.25), pause_s * random.uniform(0.5, 1.0)))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _once(
        self, body: dict[str, Any], asked: int, max_tokens: int, attempt: int, about: str
    ) -> tuple[Tried, Call]:
        """One try within the limits, and its line in the ledger."""
        async with self._first_alone():
            if self.closed:
                raise self.closed
            async with self.ledger.room(self.endpoint.price.usd(asked, max_tokens)):
                await self._pace.start(asked + max_tokens)
                if self.closed:  # while it waited
                    raise self.closed
                begun = time.monotonic()
                tried = await self._wire.complete(body)
                ended = time.monotonic()
                call = booking.line(
                    *(self.endpoint, tried, asked, max_tokens), attempt=attempt, about=about, seconds=ended - begun
                )
                self.ledger.add(call)
            self._pace.correct(call.prompt_tokens + call.completion_tokens - asked - max_tokens)
            if tried.error is None:
                self._answered_at, self._unanswered, self._turned_down = ended, 0, 0
                self._pace.speed_up(begun)
            elif tried.outcome == "status 429":
                self._pace.slow_down(begun, self.endpoint.max_concurrent)
        return tried, call

    @asynccontextmanager
    async def _first_alone(self) -> AsyncIterator[None]:
        """Around one try: the first is over before another begins, so that a wrong key or parameter costs one refused
        call, not a thousand. Its further tries hold nobody up."""
        if not self._proven:
            async with self._first:
                if not self._proven:
                    try:
                        yield
                    finally:
                        self._proven = True
                    return
        yield

    def _meaning(self, tried: Tried, sampling: Sampling, doubted_at: float) -> type[CallError] | type[Refused]:
        """What the last try of a call says of it; `doubted_at`: when half of its tries were used up."""
        kind = tried.error
        assert kind is not None
        if kind is Unreadable and tried.again and self._answered_at < doubted_at:
            return Transport  # an outage in other words: nobody else was answered meanwhile
        if kind is Refused and tried.of_prompt and sampling in self._taken:
            self._turned_down += 1
            if self._turned_down < GIVE_UP_AFTER:
                return Unreadable  # key, model and parameters have been good: this prompt is not
        return kind

    def _fail(self, kind: type[CallError] | type[Refused], tried: Tried, usage: Usage) -> NoReturn:
        if issubclass(kind, Refused):
            self.closed = Refused(self._refusal(tried.outcome, tried.detail))
            raise self.closed
        asked_to_wait = f" (asked to wait {tried.wait_s:.0f} s)" if tried.wait_s > LONGEST_WAIT_S else ""
        error = kind(tried.outcome, tried.detail + asked_to_wait, usage)
        self._unanswered = self._unanswered + 1 if kind is Transport else 0
        if self._unanswered >= GIVE_UP_AFTER:
            self.closed = Transport(f"{tried.outcome}, {GIVE_UP_AFTER} calls in a row", error.detail)
        raise error

    def _refusal(self, outcome: str, detail: str) -> str:
        if outcome in ("status 401", "status 403"):  # what such an answer says may repeat the key
            where = f"the key in {self.endpoint.key_env}" if self.endpoint.key_env else "a call without a key (key_env)"
            return f"{self.endpoint.name} refuses {where} ({outcome})"
        return f"{self.endpoint.name} refuses the call ({outcome}): {detail}"

    def _body(self, messages: Sequence[Message], sampling: Sampling, seed: int | None) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.endpoint.model,
            "messages": [{"role": m.role, "content": m.content} for m in messages],
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            self.endpoint.max_tokens_name: sampling.max_tokens,
            "seed": None if seed is None else seed & 0x7FFFFFFF,  # what every server takes
        }
        return {k: v for k, v in (body | self.endpoint.extra).items() if v is not None}

    async def _get_models(self) -> dict[str, Any]:
        """The server's list, {} where it has none."""
        told = None
        for number in range(CHECK_TRIES):
            await asyncio.sleep(number * FIRST_PAUSE_S)
            told = await self._wire.models()
            if isinstance(told, dict):
                return told
            if isinstance(told, int):
                if told in (401, 403):
                    raise UserError(self._refusal(f"status {told}", ""))
                return {}
        raise Unreachable(f"{self.endpoint.base_url} (model {self.endpoint.model!r}) cannot be reached: {told}")

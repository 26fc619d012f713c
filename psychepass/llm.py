"""Models behind OpenAI-compatible endpoints: ask, and get a reply or an error that says what to do.

    with Ledger(run.dir / "ledger_simulate.jsonl", config.budget_usd) as ledger:
        async with ChatClient(endpoint, ledger) as llm:
            await llm.check()                                   # before any call: key, address, model
            reply = await llm.chat(messages, sampling, seed=1, about="session 12ab, turn 3")
            reply.text, reply.cut_off, reply.usage

One client serves any number of tasks of one event loop and holds its endpoint's limits: make one an endpoint and
share it. `chat` tries again by itself on 429, 5xx, time-outs and broken answers, with a line of the ledger for
each try. What it raises says what to do with the item at hand:

    Unreadable       an answer came and is no reply: ask once more (another seed, or the error shown), then
                     write a Failure record. ContextOverflow is one: a shorter prompt may help.
    Transport        no answer came in several tries: write nothing, and try again on the next run.
    Refused          the key, the model or a parameter is wrong: a UserError; the client stays closed.
    BudgetSpent      a UserError: stop, and go on when the budget is raised.

`usage` of a reply, and of an Unreadable or Transport, counts every try. The key is read from the environment and
stands in no file, log, record or error.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Self

import httpx

from psychepass.answers import CallError, ContextOverflow, Refused, Transport, Tried, Unreadable, classify
from psychepass.completion import parse_body
from psychepass.endpoint import Endpoint, Price, prompt_tokens, text_tokens
from psychepass.errors import UserError
from psychepass.ledger import BudgetSpent, Call, Ledger
from psychepass.pacing import Pace
from psychepass.schema import Message, Sampling, Usage

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
GIVE_UP_AFTER = 20  # calls in a row without an answer: the endpoint is left for the next run
KEEPALIVE_S = 4.0  # below the 5 s after which common servers close an idle connection, perhaps while it is taken up
CHECK_TRIES, CHECK_TIMEOUT_S = 3, 20.0
MOST_LISTED = 20


@dataclass(frozen=True, slots=True)
class Reply:
    """`text` without thoughts, stripped, never empty; `cut_off`: the token bound ended it."""

    text: str
    reasoning: str
    cut_off: bool
    usage: Usage


class ChatClient:
    """See the module. Making one raises UserError where the variable of the key is not set."""

    def __init__(self, endpoint: Endpoint, ledger: Ledger):
        from openai import AsyncOpenAI, DefaultAioHttpClient

        self.endpoint, self.ledger = endpoint, ledger
        self.closed: CallError | Refused | None = None  # once set, every call raises it
        self._key = endpoint.key()
        limits: Any = httpx.Limits(max_connections=endpoint.max_concurrent, keepalive_expiry=KEEPALIVE_S)
        self._client = AsyncOpenAI(
            api_key=self._key,
            base_url=endpoint.base_url,
            max_retries=0,
            timeout=endpoint.timeout_s,
            http_client=DefaultAioHttpClient(limits=limits),  # httpx's own pool is slow at 1,000 connections
        )
        # else read from the environment and sent to whatever address this is
        self._client.organization = self._client.project = None
        self._pace = Pace(endpoint.requests_per_minute, endpoint.tokens_per_minute)
        self._slots = asyncio.Semaphore(endpoint.max_concurrent)
        self._first, self._proven = asyncio.Lock(), False
        self._unanswered = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def check(self) -> None:
        """Ask for the server's list of models, which costs nothing.

        Raises:
            UserError: nobody answers at the address, the key is refused, or the list leaves the model out. A server
                without a list is taken on trust.
        """
        told = await self._get_models()
        if told is None or self.endpoint.unlisted:
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
            if self._proven:
                return await self._ask(messages, sampling, seed, about)
            async with self._first:  # a wrong key or parameter costs one refused call, not a thousand
                if not self._proven:
                    try:
                        return await self._ask(messages, sampling, seed, about)
                    finally:
                        self._proven = True
            return await self._ask(messages, sampling, seed, about)

    async def _ask(self, messages: Sequence[Message], sampling: Sampling, seed: int | None, about: str) -> Reply:
        usage, pause_s, body = Usage(), FIRST_PAUSE_S, self._body(messages, sampling, seed)
        asked = prompt_tokens(messages)
        for attempt in range(1, TRIES + 1):
            tried, call = await self._once(body, asked, sampling.max_tokens, attempt, about)
            usage += _usage(call)
            if tried.error is None:
                self._unanswered = 0
                found = tried.completion
                return Reply(found.text, found.reasoning, found.finish == "length", usage)
            if not tried.again or attempt == TRIES or tried.wait_s > LONGEST_WAIT_S:
                self._fail(tried.error, tried, usage)
            if tried.wait_s:
                self._pace.hold(tried.wait_s)
            await asyncio.sleep(max(tried.wait_s, pause_s * random.uniform(0.5, 1.0)))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        raise AssertionError("the last try returns or raises")

    async def _once(
        self, body: dict[str, Any], asked: int, max_tokens: int, attempt: int, about: str
    ) -> tuple[Tried, Call]:
        """One try within the limits, and its line in the ledger."""
        if self.closed:
            raise self.closed
        async with self.ledger.room(self.endpoint.price.usd(asked, max_tokens)):
            await self._pace.start(asked + max_tokens)
            begun = time.monotonic()
            tried = await self._try(body)
            call = self._call(tried, asked, attempt, about, time.monotonic() - begun)
            self.ledger.add(call)
        self._pace.correct(call.prompt_tokens + call.completion_tokens - asked - max_tokens)
        return tried, call

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

    async def _try(self, body: dict[str, Any]) -> Tried:
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        try:
            async with asyncio.timeout(self.endpoint.timeout_s):
                response = await self._client.post("/chat/completions", body=body, cast_to=httpx.Response)
            tried = classify(response.status_code, response.headers, response.content)
        except APIStatusError as e:
            tried = classify(e.status_code, e.response.headers, e.response.content)
        except (TimeoutError, APITimeoutError):
            detail = f"no answer within {self.endpoint.timeout_s:g} s"
            return Tried("time-out", error=Transport, detail=detail, again=True)
        except APIConnectionError as e:
            return Tried("connection", error=Transport, detail=self._scrub(_cause(e)), again=True)
        return Tried(tried.outcome, tried.completion, tried.error, self._scrub(tried.detail), tried.again, tried.wait_s)

    def _call(self, tried: Tried, asked: int, attempt: int, about: str, seconds: float) -> Call:
        """The ledger's line; `asked` is the estimate of the prompt's tokens."""
        found, price = tried.completion, self.endpoint.price
        said, counted = found.completion_tokens, True
        if not (found.text or found.fault):
            asked, said = 0, 0  # no answer
        elif found.prompt_tokens is None or said is None:
            said, counted = text_tokens(found.text) + text_tokens(found.reasoning), False
        else:
            asked = found.prompt_tokens
        return Call(
            time=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            about=about,
            base_url=self.endpoint.base_url,
            model=self.endpoint.model,
            served_model=found.model,
            attempt=attempt,
            outcome=tried.outcome,
            detail=tried.detail,
            finish=found.finish,
            prompt_tokens=asked,
            completion_tokens=said,
            counted=counted,
            seconds=round(seconds, 4),
            price=(price.input, price.output),
            cost_usd=price.usd(asked, said),
        )

    async def _get_models(self) -> dict[str, Any] | None:
        from openai import APIConnectionError, APIStatusError

        seen = ""
        for number in range(CHECK_TRIES):
            await asyncio.sleep(number * FIRST_PAUSE_S)
            try:
                async with asyncio.timeout(min(CHECK_TIMEOUT_S, self.endpoint.timeout_s)):
                    response = await self._client.get("/models", cast_to=httpx.Response)
                return parse_body(response.content)
            except APIStatusError as e:
                if e.status_code in (401, 403):
                    raise UserError(self._refusal(f"status {e.status_code}", "")) from None
                return None
            except (TimeoutError, APIConnectionError) as e:
                seen = self._scrub(_cause(e))
        raise UserError(f"{self.endpoint.base_url} (model {self.endpoint.model!r}) cannot be reached: {seen}")

    def _scrub(self, text: str) -> str:
        """Servers and libraries repeat what they were sent."""
        return text if self.endpoint.key_env is None else text.replace(self._key, "[key]")


def _usage(call: Call) -> Usage:
    return Usage(
        calls=1,
        prompt_tokens=call.prompt_tokens,
        completion_tokens=call.completion_tokens,
        seconds=call.seconds,
        cost_usd=call.cost_usd,
    )


def _cause(error: Exception) -> str:
    """The innermost reason, without what it was about."""
    while isinstance(error.__cause__, Exception):
        error = error.__cause__
    return f"{type(error).__name__}: {error}"[:200] if str(error) else type(error).__name__

"""What one prompt, one slow call, a server's limit or an outage costs everybody else: as little as can be."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from psychepass import llm
from psychepass.ledger import read_calls
from psychepass.llm import ChatClient, Ledger, Refused, Reply, Transport, Unreadable
from psychepass.schema import Message, Sampling
from psychepass.wire import _cause
from tests.fault_server import Fault, FaultServer, _send, served
from tests.test_llm import SAMPLING, ask, endpoint, short_pauses

__all__ = ["short_pauses"]  # a fixture

Answer = tuple[int, dict[str, Any]]
ERROR = {"error": {"message": "Upstream is overloaded, try again later", "type": "server_error"}}


class Told(FaultServer):
    """`answer` is given the last message of a request and says what it gets; None: the reply."""

    def __init__(self, answer: Callable[[str], Answer | None], **change: Any):
        super().__init__(**change)
        self.answer, self.begun = answer, list[tuple[float, str]]()

    async def _complete(self, body: dict[str, Any], send: Any) -> None:
        last = body["messages"][-1]["content"]
        self.begun.append((time.monotonic(), last))
        given = self.answer(last)
        if given is None:
            return await super()._complete(body, send)
        await _send(send, *given)


def in_turn(url: str, path: Path, *asked: str, sampling: Sampling = SAMPLING, **change: Any) -> list[Any]:
    """What each call returned or raised, one after the other."""

    async def calls() -> list[Any]:
        got = []
        with Ledger(path) as ledger:
            async with ChatClient(endpoint(url, **change), ledger) as client:
                for a in asked:
                    call = client.chat([Message(role="user", content=a)], sampling)
                    got += await asyncio.gather(call, return_exceptions=True)
        return got

    return asyncio.run(calls())


def refuse_risky(last: str) -> Answer | None:
    return (400, {"error": {"message": "we do not like this one"}}) if "risky" in last else None


def test_a_prompt_refused_in_unknown_words_concerns_that_prompt_alone(tmp_path: Path) -> None:
    with served(Told(refuse_risky)) as url:
        got = in_turn(url, tmp_path / "l.jsonl", "a", "risky 1", "risky 1", "b", "risky 2", "c")
    assert [type(g) for g in got] == [Reply, Unreadable, Unreadable, Reply, Unreadable, Reply]
    assert str(got[1]) == "status 400: we do not like this one" and got[1].usage.calls == 1


def test_refusals_in_a_row_close_the_endpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm, "GIVE_UP_AFTER", 3)
    server = Told(refuse_risky)
    with served(server) as url:
        got = in_turn(url, tmp_path / "l.jsonl", "a", "risky", "risky", "b", *["risky"] * 3, "c", "d")
    kinds = [Reply, Unreadable, Unreadable, Reply, Unreadable, Unreadable, Refused, Refused, Refused]
    assert [type(g) for g in got] == kinds and len(server.begun) == 7


def test_a_parameter_that_was_never_accepted_is_refused_at_once(tmp_path: Path) -> None:
    server = Told(refuse_risky)
    with served(server) as url:
        assert type(in_turn(url, tmp_path / "l.jsonl", "risky", "a")[1]) is Refused and len(server.begun) == 1

        async def another_sampling() -> Any:
            with Ledger(tmp_path / "m.jsonl") as ledger:
                async with ChatClient(endpoint(url), ledger) as client:
                    await client.chat([Message(role="user", content="a")], SAMPLING)
                    await client.chat([Message(role="user", content="risky")], Sampling(temperature=99))

        with pytest.raises(Refused):
            asyncio.run(another_sampling())


def test_an_outage_that_says_200_leaves_everything_open(tmp_path: Path) -> None:
    answered = []

    def answer(last: str) -> Answer | None:
        answered.append(last)
        return None if len(answered) <= 5 else (200, ERROR)

    with served(Told(answer)) as url:
        got = ask(url, tmp_path / "l.jsonl", *map(str, range(15)), max_concurrent=5)
    assert Counter(type(g) for g in got) == {Reply: 5, Transport: 10}
    assert {g.reason for g in got if not isinstance(g, Reply)} == {"error body"}


def test_one_prompt_that_alone_gets_error_bodies_is_unreadable(tmp_path: Path) -> None:
    with served(Told(lambda last: (200, ERROR) if last == "0" else None, delay_s=0.02)) as url:
        first, *others = ask(url, tmp_path / "l.jsonl", *map(str, range(40)), max_concurrent=2)
    assert type(first) is Unreadable and first.usage.calls == llm.TRIES
    assert all(isinstance(g, Reply) for g in others)


class Limited(Told):
    """Answers `a_second` requests a second, as a bucket of tokens; 429 to the rest, which it counts."""

    def __init__(self, a_second: float):
        super().__init__(self._limit)
        self.a_second, self.bucket, self.at, self.turned_away = a_second, 5.0, time.monotonic(), 0

    def _limit(self, _: str) -> Answer | None:
        now = time.monotonic()
        self.bucket, self.at = min(5.0, self.bucket + (now - self.at) * self.a_second), now
        if self.bucket >= 1:
            self.bucket -= 1
            return None
        self.turned_away += 1
        return 429, ERROR


def test_a_limit_that_no_config_names_slows_the_client_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm, "TRIES", 3)
    server = Limited(a_second=40)
    with served(server) as url:
        got = ask(url, tmp_path / "l.jsonl", *map(str, range(120)), max_concurrent=60)
    assert all(isinstance(g, Reply) for g in got)
    assert server.turned_away < 240  # two a reply; at once and unslowed they are thousands
    assert len(list(read_calls(tmp_path / "l.jsonl"))) == 120 + server.turned_away


def test_waiting_for_a_busy_server_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count(1.0)  # the time is how often it was asked for, two or three times a try of anybody
    monkeypatch.setattr(llm, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    monkeypatch.setattr(llm, "LONGEST_BUSY_S", 100.0)
    answer = (503, ERROR)
    with served(Told(lambda last: answer if last == "0" else None, delay_s=0.02)) as url:
        first, *others = ask(url, tmp_path / "l.jsonl", *map(str, range(60)), max_concurrent=2)
    assert type(first) is Transport and first.usage.calls > llm.TRIES
    assert all(isinstance(g, Reply) for g in others)
    assert list(read_calls(tmp_path / "l.jsonl"))[-1].about != "0"  # it ended while others were still answered


def test_a_first_call_that_hangs_holds_the_others_up_for_one_try_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class HangsFirst(FaultServer):
        async def _complete(self, body: dict[str, Any], send: Any) -> None:
            if body["messages"][-1]["content"] == "0":
                await asyncio.sleep(60.0)
            await super()._complete(body, send)

    monkeypatch.setattr(llm, "TRIES", 6)
    with served(HangsFirst()) as url:
        got = ask(url, tmp_path / "l.jsonl", *map(str, range(10)), timeout_s=0.5)
    assert [type(g) for g in got] == [Transport, *[Reply] * 9]
    ended = [(c.about, c.attempt, c.outcome) for c in read_calls(tmp_path / "l.jsonl")]
    assert ended[0] == ("0", 1, "time-out")  # nobody else was asked until then
    assert ended[-1] == ("0", 6, "time-out")  # by then everybody was answered


def test_two_clients_of_one_model_keep_one_limit_together(tmp_path: Path) -> None:
    async def calls(url: str) -> None:
        with Ledger(tmp_path / "l.jsonl") as ledger:
            one, other = (endpoint(url, requests_per_minute=600, extra=e) for e in ({}, {"top_k": 5}))
            async with ChatClient(one, ledger) as a, ChatClient(other, ledger) as b:
                hello = [Message(role="user", content="hello")]
                await asyncio.gather(*(c.chat(hello, SAMPLING) for c in (a, b) for _ in range(4)))

    server = FaultServer()
    with served(server) as url:
        asked_s = time.monotonic()
        asyncio.run(calls(url))
    begun = [s.begun_s for s in server.log]
    assert len(begun) == 8 and max(begun) - asked_s > 7 * 0.1  # the server may see the first ones late


def test_an_answer_cut_off_is_booked_within_what_was_set_aside(tmp_path: Path) -> None:
    with served(FaultServer((Fault("cut-off JSON", 1.0, 1),))) as url:
        (got,) = ask(url, tmp_path / "l.jsonl", "I am tired.")
    cut, whole = read_calls(tmp_path / "l.jsonl")
    assert (cut.outcome, cut.prompt_tokens, cut.completion_tokens, cut.counted) == ("broken JSON", 13, 40, False)
    assert cut.cost_usd == pytest.approx((13 + 2 * 40) / 1e6) and whole.counted
    assert got.usage.cost_usd == pytest.approx(cut.cost_usd + whole.cost_usd)


def test_a_librarys_words_are_told_in_one_line() -> None:
    error = RuntimeError("connection")
    error.__cause__ = ValueError("400, message:\n  Not enough data.")
    assert _cause(error) == "ValueError: 400, message: Not enough data."


def test_a_request_that_never_left_costs_nothing_and_spends_no_budget(tmp_path: Path) -> None:
    path, url = tmp_path / "l.jsonl", "http://127.0.0.1:9/v1"  # nobody listens there
    got = ask(url, path, *map(str, range(8)), budget_usd=1e-3, price={"input": 1.0, "output": 1.0})
    assert [type(g) for g in got] == [Transport] * 8  # waits for the next run; the budget would have ended it
    assert all(g.reason == "connection" or g.reason.startswith("connection, ") for g in got)
    lines = list(read_calls(path))
    assert {(x.outcome, x.prompt_tokens, x.cost_usd) for x in lines} == {("connection", 0, 0.0)} and len(lines) >= 8
    assert "refused" in lines[0].detail or "Connect call failed" in lines[0].detail


@pytest.mark.parametrize("status", [400, 500])
def test_a_key_that_a_cut_would_halve_is_shown_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    key = "sk-" + "k" * 40
    monkeypatch.setenv("MADE_UP_KEY", key)
    echo = {"error": {"message": "-" * 275 + f" you sent {key}", "type": ""}}
    with served(Told(lambda last: (status, echo))) as url:
        (got,) = ask(url, tmp_path / "l.jsonl", "x", key_env="MADE_UP_KEY")
    shown = repr(got) + str(got) + (tmp_path / "l.jsonl").read_text()
    assert "kkk" not in shown and "-" * 200 in shown

"""The client of endpoints against a real server on the loopback: what it returns, raises, writes and hides."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from psychepass import llm
from psychepass.config import parse
from psychepass.errors import UserError
from psychepass.ledger import Call, read_calls
from psychepass.llm import (
    BudgetSpent,
    ChatClient,
    ContextOverflow,
    Endpoint,
    Ledger,
    Refused,
    Reply,
    Transport,
    Unreadable,
)
from psychepass.pacing import Pace
from psychepass.schema import Message, Sampling
from tests.fake_clock import FakeClock, clock
from tests.fault_server import ALWAYS, MODEL, Fault, FaultServer, completion, reply, served

__all__ = ["clock"]  # a fixture

SAMPLING = Sampling(temperature=0.5, max_tokens=40)
HELLO = (Message(role="system", content="Be kind."), Message(role="user", content="I am tired."))
KEY = "sk-never-to-be-seen-0123456789"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(llm, "LONGEST_PAUSE_S", 0.02)


def endpoint(url: str, **change: Any) -> Endpoint:
    given = {"base_url": url, "model": MODEL, "price": {"input": 1.0, "output": 2.0}, "timeout_s": 60.0}
    return parse(Endpoint, given | change, "here")


def ask(url: str, path: Path, *asked: str, budget_usd: float | None = None, **change: Any) -> list[Any]:
    """What each call returned or raised, all at once."""

    async def calls() -> list[Any]:
        with Ledger(path, budget_usd) as ledger:
            async with ChatClient(endpoint(url, **change), ledger) as client:
                waiting = (
                    client.chat([*HELLO[:1], Message(role="user", content=a)], SAMPLING, seed=7, about=a) for a in asked
                )
                return await asyncio.gather(*waiting, return_exceptions=True)

    return asyncio.run(calls())


def always(kind: str) -> FaultServer:
    return FaultServer((Fault(kind, 1.0, ALWAYS),), hang_s=0.5)


def test_a_reply_its_usage_and_its_line(tmp_path: Path) -> None:
    server = FaultServer()
    with served(server) as url:
        (got,) = ask(url, tmp_path / "l.jsonl", "I am tired.", extra={"top_p": None, "reasoning_effort": "low"})
    body = {
        "model": MODEL,
        "messages": [{"role": m.role, "content": m.content} for m in HELLO],
        "temperature": 0.5,
        "max_tokens": 40,
        "seed": 7,
        "reasoning_effort": "low",
    }
    assert server.bodies == [body]
    assert isinstance(got, Reply) and (got.text, got.reasoning, got.cut_off) == (reply(body), "", False)
    (line,) = read_calls(tmp_path / "l.jsonl")
    assert (line.outcome, line.attempt, line.about, line.model) == ("ok", 1, "I am tired.", MODEL)
    assert (line.prompt_tokens, line.completion_tokens, line.price) == (5, 13, (1.0, 2.0)) and line.counted
    assert line.cost_usd == pytest.approx((5 * 1.0 + 13 * 2.0) / 1e6)
    assert (got.usage.calls, got.usage.prompt_tokens, got.usage.cost_usd) == (1, 5, line.cost_usd)


@pytest.mark.parametrize("kind", ["429", "500", "hang", "cut-off JSON", "cut-off transfer", "error body"])
def test_what_passes_is_tried_again_and_every_try_has_a_line(tmp_path: Path, kind: str) -> None:
    with served(FaultServer((Fault(kind, 1.0, 2),), hang_s=5.0)) as url:
        (got,) = ask(url, tmp_path / "l.jsonl", "I am tired.", timeout_s=1.0 if kind == "hang" else 60.0)
    lines = list(read_calls(tmp_path / "l.jsonl"))
    tries = len(lines) if kind == "hang" else 3  # on a busy machine an answer may come too late as well
    assert isinstance(got, Reply) and got.usage.calls == tries >= 3
    named = {"429": "status 429", "500": "status 500", "hang": "time-out", "cut-off JSON": "broken JSON"}
    named["cut-off transfer"] = "connection"
    assert [x.outcome for x in lines] == [named.get(kind, kind)] * (tries - 1) + ["ok"]
    assert [x.attempt for x in lines] == list(range(1, tries + 1))
    # what a provider may bill though no reply came, by estimate: the prompt, and what was cut off
    sent = 13 if kind in ("hang", "cut-off JSON", "cut-off transfer") else 0
    assert [(x.prompt_tokens, x.counted) for x in lines[:2]] == [(sent, not sent)] * 2
    assert [x.completion_tokens for x in lines[:2]] == [40 if kind == "cut-off JSON" else 0] * 2


@pytest.mark.parametrize(
    ("kind", "error", "reason", "tries"),
    [
        ("429", Transport, "status 429", llm.TRIES),
        ("500", Transport, "status 500", llm.TRIES),
        ("hang", Transport, "time-out", llm.TRIES),
        ("cut-off transfer", Transport, "connection", llm.TRIES),
        ("cut-off JSON", Transport, "broken JSON", llm.TRIES),  # nobody was answered meanwhile
        ("error body", Transport, "error body", llm.TRIES),
        ("empty", Unreadable, "empty", 1),
        ("wrong role", Unreadable, "wrong role", 1),
        ("thoughts only", Unreadable, "empty", 1),
        ("too long", ContextOverflow, "context overflow", 1),
    ],
)
def test_what_stays_is_an_error_of_its_kind(
    tmp_path: Path, kind: str, error: type[Exception], reason: str, tries: int
) -> None:
    server = FaultServer(context_words=3) if kind == "too long" else always(kind)
    with served(server) as url:
        (got,) = ask(url, tmp_path / "l.jsonl", "I am tired.", timeout_s=0.05 if kind == "hang" else 60.0)
    assert type(got) is error and got.reason == reason and got.usage.calls == tries
    assert len(server.log) == tries or kind == "hang"  # so short a time may be over before the server is asked
    lines = list(read_calls(tmp_path / "l.jsonl"))
    assert [x.outcome for x in lines] == [reason] * tries
    assert sum(x.cost_usd for x in lines) == pytest.approx(got.usage.cost_usd)
    free = ("429", "500", "error body", "too long")  # what came of the others may be billed though unreadable
    assert (got.usage.cost_usd > 0) == (kind not in free)


def test_a_wrong_parameter_costs_one_refused_call_not_a_thousand(tmp_path: Path) -> None:
    server = FaultServer()
    with served(server) as url:
        got = ask(url, tmp_path / "l.jsonl", *map(str, range(50)), model="made-up-2", max_concurrent=50)
    assert all(type(g) is Refused for g in got) and len(server.log) == 1
    assert str(got[0]) == (f"made-up-2 at {url} refuses the call (status 404): the model 'made-up-2' does not exist")


def test_an_endpoint_that_never_answers_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm, "GIVE_UP_AFTER", 3)
    server = always("500")
    with served(server) as url:
        got = ask(url, tmp_path / "l.jsonl", *map(str, range(9)), max_concurrent=1)
    assert all(type(g) is Transport for g in got) and len(server.log) == 3 * llm.TRIES
    assert got[-1].reason == "status 500, 3 calls in a row"


def test_the_key_is_sent_and_shown_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    monkeypatch.setenv("MADE_UP_KEY", KEY)
    with served(FaultServer(key=KEY)) as url:
        (got,) = ask(url, tmp_path / "l.jsonl", "x", key_env="MADE_UP_KEY")
        assert isinstance(got, Reply)
        monkeypatch.setenv("MADE_UP_KEY", KEY + "-wrong")  # the server repeats it in its error
        (refused,) = ask(url, tmp_path / "l.jsonl", "x", key_env="MADE_UP_KEY")
        with pytest.raises(UserError, match="refuses the key in MADE_UP_KEY"):
            asyncio.run(check(endpoint(url, key_env="MADE_UP_KEY"), tmp_path))
    assert str(refused) == f"{MODEL} at {url} refuses the key in MADE_UP_KEY (status 401)"
    monkeypatch.delenv("MADE_UP_KEY")
    with pytest.raises(UserError, match="the environment variable MADE_UP_KEY is not set"):
        ask("http://127.0.0.1:9/v1", tmp_path / "l.jsonl", "x", key_env="MADE_UP_KEY")
    for wrong in ("sk-never-\u00e4-1", "sk-never\n-1", "sk-never -1"):  # pasted with more than the key
        monkeypatch.setenv("MADE_UP_KEY", wrong)
        with pytest.raises(UserError, match="the environment variable MADE_UP_KEY holds no key: ") as e:
            ask("http://127.0.0.1:9/v1", tmp_path / "l.jsonl", "x", key_env="MADE_UP_KEY")
        assert "sk-never" not in str(e.value) and "\n" not in str(e.value)
    shown = caplog.text + "".join(f.read_text() for f in tmp_path.iterdir()) + repr(refused)
    assert "sk-never" not in shown and "127.0.0.1" in shown


def test_a_key_written_into_a_config_is_refused_and_not_repeated() -> None:
    for change in ({"api_key": KEY}, {"key": KEY}, {"key_env": KEY}, {"base_url": f"https://me:{KEY}@host/v1"}):
        with pytest.raises(UserError) as e:
            endpoint("http://h/v1", **change)
        assert KEY not in str(e.value) and next(iter(change)) in str(e.value)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"price": {"input": -1.0, "output": 1.0}}, r"price.input: Input should be greater than or equal to 0, got -1"),
        ({"price": {"input": 1.0}}, "missing key 'price.output'"),
        ({"price": {"input": "free", "output": 0}}, "price.input: Input should be a valid number, got 'free'"),
        ({"price": {"input": float("nan"), "output": 0}}, "price.input: Input should be a finite number, got nan"),
        ({"requests_per_minute": 0}, "requests_per_minute"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"base_url": "host:80"}, r"base_url: expected http\(s\)"),
        ({"base_url": "http://h/v1?x=1"}, "without user, password or query"),
        ({"extra": {"api_key": "sk-1"}}, "'api_key' stands in no config: key_env names the variable"),
        ({"extra": {"headers": [{"Authorization": "sk-1"}]}}, "'Authorization' stands in no config"),
        ({"extra": {"extra_headers": {"x-api-key": "made-up"}}}, "'x-api-key' stands in no config"),
        ({"extra": {"access_token": "made-up"}}, "'access_token' stands in no config"),
        ({"extra": {"user": {"notes": ["a", "sk-1"]}}}, "'notes' stands in no config"),
        ({"base_url": "http://h/sk-1abc/v1"}, "a key stands in no config: .NAME in its place takes it"),
        ({"extra": {"top_k": 5, "model": "other"}}, "extra: 'model' is set elsewhere .* and cannot stand in extra"),
        ({"extra": {"stream": True}}, "extra: 'stream' is set elsewhere"),
        ({"extra": {"n": 4}}, "extra: 'n' is set elsewhere"),
        ({"extra": {"max_completion_tokens": None}}, "extra: 'max_completion_tokens' is set elsewhere"),
    ],
)
def test_a_wrong_endpoint_is_named(change: dict[str, Any], fault: str) -> None:
    with pytest.raises(UserError, match=fault) as e:
        endpoint("http://h/v1", **change)
    assert "sk-1" not in str(e.value)


def test_what_only_sounds_like_a_key_is_permitted() -> None:
    extra = {"prompt_cache_key": "a", "stop_token": "b", "stop_token_ids": [1], "user": "task-force"}
    assert endpoint("http://h/v1", extra=extra).extra == extra


async def check(given: Endpoint, folder: Path) -> None:
    with Ledger(folder / "l.jsonl") as ledger:
        async with ChatClient(given, ledger) as client:
            await client.check()


def test_the_check_asks_no_model(tmp_path: Path) -> None:
    server = FaultServer()
    with served(server) as url:
        asyncio.run(check(endpoint(url), tmp_path))
        asyncio.run(check(endpoint(url, model="other", unlisted=True), tmp_path))
        with pytest.raises(UserError, match=f"{url} has no model 'other'; it lists {MODEL} "):
            asyncio.run(check(endpoint(url, model="other"), tmp_path))
        asyncio.run(check(endpoint(url.removesuffix("/v1"), model="other"), tmp_path))  # no list there: on trust
    with pytest.raises(UserError, match=r"http://127.0.0.1:9/v1 \(model 'made-up-1'\) cannot be reached: "):
        asyncio.run(check(endpoint("http://127.0.0.1:9/v1"), tmp_path))
    assert not server.log and not (tmp_path / "l.jsonl").read_text()


def test_requests_a_minute_are_kept(tmp_path: Path) -> None:
    server = FaultServer()
    with served(server) as url:
        asked_s = time.monotonic()
        ask(url, tmp_path / "l.jsonl", *map(str, range(5)), requests_per_minute=300)
    begun = [x.begun_s for x in server.log]
    assert len(begun) == 5 and begun[-1] - asked_s > 4 * 0.2  # the server may see the first ones late


def test_tokens_a_minute_are_corrected_by_what_was_used(clock: FakeClock) -> None:
    async def starts() -> list[float]:
        pace, at = Pace(None, 12_000), []  # a token takes 5 ms
        for booked, used in ((100, 20), (50, 50), (50, 100)):
            await pace.start(booked)
            at.append(clock.now_s)
            pace.correct(used - booked)
        await pace.start(1)
        return [*at, clock.now_s]

    begun = clock.now_s
    assert [t - begun for t in clock.run(starts())] == pytest.approx([0, 0.1, 0.35, 0.85])


def test_calls_at_once_are_bounded(tmp_path: Path) -> None:
    class WaitsForSeven(FaultServer):
        """From the second request on it answers nobody until seven have come at once, but for ten seconds at most."""

        async def _complete(self, body: dict[str, Any], send: Any) -> None:
            came.append(body)
            if len(came) == 1 + 7:
                seven.set()
            if len(came) > 1:
                await asyncio.wait_for(seven.wait(), 10.0)
            await super()._complete(body, send)

    came, seven, server = list[dict[str, Any]](), asyncio.Event(), WaitsForSeven(delay_s=0.02)
    with served(server) as url:
        got = ask(url, tmp_path / "l.jsonl", *map(str, range(30)), max_concurrent=7)
    assert all(isinstance(g, Reply) for g in got) and server.most_open == 7


def test_the_budget_is_never_passed_and_stops_all(tmp_path: Path) -> None:
    """Each call costs 18 to 32 millionths; the bound of a reply makes it 90 at most."""
    path, server = tmp_path / "l.jsonl", FaultServer(delay_s=0.01)
    with served(server) as url:
        first = ask(url, path, *map(str, range(40)), budget_usd=400e-6, max_concurrent=40)
        spent = sum(x.cost_usd for x in read_calls(path))
        stopped = [g for g in first if isinstance(g, BudgetSpent)]
        assert 200e-6 < spent <= 400e-6 and 0 < len(stopped) < 40
        assert len(stopped) + sum(isinstance(g, Reply) for g in first) == 40
        assert f"budget_usd is 0.0004, {spent:.6g} are spent ({path})" in str(stopped[0])
        asked = len(server.log)
        (again,) = ask(url, path, "x", budget_usd=400e-6)  # what earlier runs spent counts
        assert isinstance(again, BudgetSpent) and len(server.log) == asked
        assert isinstance(ask(url, path, "x", budget_usd=900e-6)[0], Reply)


def test_a_torn_ledger_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    with served(FaultServer()) as url:
        ask(url, path, "a", "b")
        path.write_bytes(path.read_bytes()[:-20])
        ask(url, path, "c")
    assert [x.about for x in read_calls(path)] == ["a", "c"]
    path.write_text("{}\n")
    with pytest.raises(UserError, match="line 1: not a call"):
        Ledger(path)


def test_retry_after_is_kept_and_too_long_a_wait_is_left_for_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = FaultServer((Fault("429", 1.0, 1),))
    with served(server) as url:
        ask(url, tmp_path / "l.jsonl", "a")
        assert server.log[1].begun_s - server.log[0].begun_s > 0.05
        monkeypatch.setattr(llm, "LONGEST_WAIT_S", 0.01)
        (got,) = ask(url, tmp_path / "l.jsonl", "b")
    assert type(got) is Transport and len(server.log) == 3


def test_tokens_are_estimated_and_marked_where_the_server_counts_none(tmp_path: Path) -> None:
    class Silent(FaultServer):
        def _answer(self, kind: str, body: dict[str, Any]) -> tuple[int, Any, list[tuple[bytes, bytes]]]:
            done = completion(body, self.model, "x" * 40)
            return 200, done | {"usage": None}, []

    with served(Silent()) as url:
        ask(url, tmp_path / "l.jsonl", "I am tired.")
    (line,) = read_calls(tmp_path / "l.jsonl")
    assert (line.counted, line.prompt_tokens, line.completion_tokens) == (False, 13, 10)
    assert Call.model_validate_json(line.model_dump_json()) == line


@contextmanager
def environment(monkeypatch: pytest.MonkeyPatch, **change: str) -> Iterator[None]:
    with monkeypatch.context() as patch:
        for name, value in change.items():
            patch.setenv(name, value)
        yield


def test_names_of_an_account_in_the_environment_are_not_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    headers: list[dict[bytes, bytes]] = []

    class Listening(FaultServer):
        async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
            headers.append(dict(scope.get("headers", ())))
            await super().__call__(scope, receive, send)

    with (
        environment(monkeypatch, OPENAI_ORG_ID="org-x", OPENAI_PROJECT_ID="p-x", OPENAI_API_KEY=KEY),
        served(Listening()) as url,
    ):
        ask(url, tmp_path / "l.jsonl", "x")
    sent = b" ".join(v for h in headers for v in h.values())
    assert headers and b"org-x" not in sent and b"p-x" not in sent and KEY.encode() not in sent

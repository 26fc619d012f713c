"""Therapists behind endpoints in stage `simulate`: nothing lost, nothing invented, nothing asked twice."""

from __future__ import annotations

import random
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from psychepass import llm, records
from psychepass.cli import main as cli
from psychepass.ledger import read_calls
from psychepass.records import write_json
from psychepass.schema import Failure, Session, TurnRecord
from rollout_env.open_session import OpenSession
from rollout_env.therapist import chat_messages, system_prompt
from tests.endpoint_rig import ROOT, contestants, kill_often, said, told_apart_by_time_alone, write_config
from tests.fault_server import ALWAYS, FAULTS, MODEL, Fault, FaultServer, digest, reply, served

OUTCOMES = {"429": "status 429", "500": "status 500", "hang": "time-out", "cut-off JSON": "broken JSON"}
OUTCOMES |= {"cut-off transfer": "connection", "thoughts only": "empty", "reply": "ok"}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(llm, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(llm, "LONGEST_PAUSE_S", 0.05)


def shown(session: Session, turn: int) -> list[dict[str, str]]:
    """What the server must have been sent for this turn."""
    prompt = ("paper", "warm")[session.therapist.seed % 2]
    history = [(t.client, t.therapist) for t in session.turns[: turn - 1]]
    messages = chat_messages(system_prompt(prompt, 30), history, session.turns[turn - 1].client)
    return [{"role": m.role, "content": m.content} for m in messages]


def test_300_conversations_end_with_nothing_lost_nothing_invented_and_each_failure_counted(tmp_path: Path) -> None:
    server = FaultServer(FAULTS, hang_s=60.0)
    with served(server) as url:
        therapists = contestants(url, max_concurrent=40, timeout_s=4.0)
        config = write_config(tmp_path, therapists, clients=20, seeds=[0, 1, 2, 3, 4])
        assert cli(["simulate", str(config)]) == 0
        asked = len(server.log)
        manifest = tmp_path / "run" / "manifests" / "simulate.json"
        write_json(manifest, records.read_json(manifest) | {"ended": None})
        assert cli(["simulate", str(config)]) == 0 and len(server.log) == asked  # nothing is asked again
    sessions = records.read(tmp_path / "run" / "sessions.jsonl", Session)
    failures = records.read(tmp_path / "run" / "session_failures.jsonl", Failure)
    assert (
        len(sessions) + len(failures) == 300 and len({s.key for s in sessions} | {f.subject for f in failures}) == 300
    )
    # nothing invented: each reply is what the server said to exactly these words, seed and sampling
    replies = {digest(b["messages"]): set() for b in server.bodies}
    for b in server.bodies:
        replies[digest(b["messages"])].add(reply(b))
    for s in sessions:
        assert all(t.therapist in replies[digest(shown(s, t.turn))] for t in s.turns)
    assert len({tuple(t.therapist for t in s.turns) for s in sessions}) == 300 - len(failures)
    # each failure counted: by the server, in the ledger, in the records
    by_server = Counter(OUTCOMES.get(s.kind, s.kind) for s in server.log)
    calls = list(read_calls(tmp_path / "run" / "ledger_simulate.jsonl"))
    by_ledger = Counter(c.outcome for c in calls)
    assert told_apart_by_time_alone(by_server, calls, timeout_s=4.0)
    assert set(by_ledger) == {*OUTCOMES.values(), "error body", "wrong role"}
    unreadable = Counter(c.about for c in calls if c.outcome in ("empty", "wrong role"))
    assert len(failures) == sum(n == 2 for n in unreadable.values()) > 0 and max(unreadable.values()) == 2
    assert {f.reason for f in failures} == {"unreadable reply, twice"} and all(f.usage.cost_usd > 0 for f in failures)
    journal = records.read(tmp_path / "run" / "turns.jsonl", TurnRecord)
    assert len(journal) == by_ledger["ok"]
    spent = sum(c.cost_usd for c in calls)
    recorded = sum(r.usage.cost_usd for r in [*journal, *failures])
    assert spent == pytest.approx(recorded)


def test_three_kills_change_no_record_and_repeat_only_calls_in_flight(tmp_path: Path) -> None:
    server = FaultServer((Fault("500", 0.02), Fault("empty", 0.004, ALWAYS)), delay_s=0.05)
    with served(server) as url:
        therapists = contestants(url, max_concurrent=12)
        plain, killed = (write_config(tmp_path / n, therapists, clients=12) for n in ("plain", "killed"))
        found = kill_often(server, url, plain, killed, 3, random.Random(5))
    assert found.kills == 3 and found.missing == found.extra == 0
    unreadable = len(said(tmp_path / "plain" / "run")["session_failures.jsonl"])
    assert found.repeated <= found.unwritten <= 3 * (12 + unreadable) and unreadable > 0


def test_what_got_no_answer_is_asked_on_the_next_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some messages get a 500 until the first run has ended, however often they are sent."""
    monkeypatch.setattr(llm, "TRIES", 2)
    server = FaultServer((Fault("500", 0.04, ALWAYS),))
    with served(server) as url:
        config = write_config(tmp_path, contestants(url), clients=6)
        assert cli(["simulate", str(config)]) == 75
        error = capsys.readouterr().err
        done = len(records.read(tmp_path / "run" / "sessions.jsonl", Session))
        assert 0 < done < 18 and f"{18 - done} of 18 sessions were left open" in error
        assert f"{18 - done}: {MODEL} at {url}: status 500: server_error made to fail" in error
        assert not records.read(tmp_path / "run" / "session_failures.jsonl", Failure)
        journal, asked = (tmp_path / "run" / "turns.jsonl").read_bytes(), len(server.log)
        server.faults = ()
        assert cli(["simulate", str(config)]) == 0
    assert (tmp_path / "run" / "turns.jsonl").read_bytes().startswith(journal)
    assert len(server.log) - asked == 18 * 12 - journal.count(b"\n")
    assert len(records.read(tmp_path / "run" / "sessions.jsonl", Session)) == 18


def test_a_budget_stops_cleanly_and_a_higher_one_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = FaultServer(delay_s=0.005)
    with served(server) as url:
        config = write_config(tmp_path, contestants(url), clients=4)
        assert cli(["simulate", str(config), "budget_usd=0.008"]) == 2
        error, ledger = capsys.readouterr().err, tmp_path / "run" / "ledger_simulate.jsonl"
        spent = sum(c.cost_usd for c in read_calls(ledger))
        assert "12 of 12 sessions were left open (12: budget_usd is 0.008, " in error
        assert 0.007 < spent <= 0.008 and len(server.log) == len(
            records.read(tmp_path / "run" / "turns.jsonl", TurnRecord)
        )
        assert cli(["simulate", str(config), "budget_usd=1"]) == 0
    assert len(server.log) == 12 * 12
    manifest = records.read_json(tmp_path / "run" / "manifests" / "simulate.json")
    assert manifest["notes"]["cost_usd"] == pytest.approx(sum(c.cost_usd for c in read_calls(ledger)))


def test_a_history_too_long_for_the_model_loses_its_oldest_turns(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = FaultServer(context_words=260)
    with served(server) as url:
        config = write_config(tmp_path, contestants(url, 1), clients=2)
        assert cli(["simulate", str(config)]) == 0
        assert any(s.kind == "too long" for s in server.log)
        answered = [b["messages"] for b, s in zip(server.bodies, server.log, strict=True) if s.kind == "reply"]
        assert len(answered) == 24 and all(m[0]["role"] == "system" for m in answered)
        assert {len(m) for m in answered if len(m) > 9} <= {10, 12, 14, 16, 18, 20}
        server.context_words = 10
        config = write_config(tmp_path / "short", contestants(url, 1), clients=2)
        assert cli(["simulate", str(config)]) == 2
    error = capsys.readouterr().err
    assert "a prompt without any history and a reply of up to 64 tokens exceed the model's context" in error


def test_on_a_resume_an_endpoint_that_is_down_holds_up_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    up, down = FaultServer(delay_s=0.005), FaultServer(delay_s=0.005)
    with served(up) as url, served(down) as other:
        config = write_config(tmp_path, [*contestants(url, 1), *contestants(other, 2)[1:]], clients=4)
        down.down = True
        assert cli(["simulate", str(config)]) == 2 and not up.log  # on a first start the address may be wrong
        assert "cannot be reached" in capsys.readouterr().err
        down.down = False
        assert cli(["simulate", str(config), "budget_usd=0.008"]) == 2
        asked, down.down = len(down.log), True
        assert cli(["simulate", str(config)]) == 75
        error = [line for line in capsys.readouterr().err.splitlines() if "cannot be reached" in line]
        assert len(error) == 2 and "waits for the next call of the stage" in error[0]
        assert f"4 of 8 sessions were left open (4: {MODEL} at {other}: cannot be reached)" in error[1]
        assert len(up.log) == 4 * 12 and len(down.log) == asked
        sessions = records.read(tmp_path / "run" / "sessions.jsonl", Session)
        assert [s.therapist.name for s in sessions] == 4 * ["made-up-0"]
        down.down, down.model = False, "made-up-2"
        assert cli(["simulate", str(config)]) == 2 and len(down.log) == asked  # another model is no outage
        down.model = MODEL
        assert cli(["simulate", str(config)]) == 0
    assert len(down.log) == 4 * 12


# --- bad input: one clear error, before any call ---------------------------------------------------


def bad(url: str, fault: str) -> list[dict[str, Any]]:
    if fault == "name":
        return [*contestants(url), contestants(url)[0]]
    if fault == "price":
        return contestants(url, price={"input": -1, "output": 2})
    if fault == "key":
        return contestants(url, key_env="NO_SUCH_KEY")
    if fault == "host":
        return contestants("http://127.0.0.1:9/v1")
    if fault == "no endpoint":
        return [{k: v for k, v in contestants(url)[0].items() if k != "endpoint"}]
    if fault == "prompt":
        return [contestants(url)[0] | {"prompt": "/no/such/prompt.txt"}]
    return contestants(url, model="made-up-9")


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("name", "two therapists are called made-up-0; each needs a name of its own"),
        ("price", "price.input: Input should be greater than or equal to 0, got -1"),
        ("key", "made-up-1 at {url}: the environment variable NO_SUCH_KEY is not set"),
        ("host", "http://127.0.0.1:9/v1 (model 'made-up-1') cannot be reached: "),
        ("model", "{url} has no model 'made-up-9'; it lists made-up-1 "),
        ("no endpoint", "therapist 'made-up-0' of kind endpoint needs 'endpoint'"),
        ("prompt", "/no/such/prompt.txt: "),
    ],
)
def test_bad_input_is_one_error_before_any_call_and_can_be_mended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, fault: str, told: str
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    server = FaultServer()
    with served(server) as url:
        assert cli(["simulate", str(write_config(tmp_path, bad(url, fault), clients=2))]) == 2
        error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("psychepass simulate: ")]
        assert len(error) == 1 and told.format(url=url) in error[0] and "Traceback" not in error[0]
        assert not server.log
        assert cli(["simulate", str(write_config(tmp_path, contestants(url, 1), clients=1))]) == 0
    assert len(records.read(tmp_path / "run" / "sessions.jsonl", Session)) == 1


def test_limits_and_price_may_change_on_a_run_but_not_the_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(**change: Any) -> str:
        return str(write_config(tmp_path, contestants(url, 1, **change), clients=2))

    with served(FaultServer()) as url:
        assert cli(["simulate", write(), "budget_usd=0.0006"]) == 2
        changed = {"price": {"input": 0, "output": 0}, "requests_per_minute": 60_000, "max_concurrent": 3}
        assert cli(["simulate", write(**changed, model="made-up-2")]) == 2
        told = "(therapists.0.endpoint.model: was 'made-up-1', is 'made-up-2')"
        assert f"ran before with other config {told}" in capsys.readouterr().err
        assert cli(["simulate", write(**changed, timeout_s=9, tokens_per_minute=60_000_000)]) == 0
    assert len(records.read(tmp_path / "run" / "sessions.jsonl", Session)) == 2


def test_a_prompt_of_ones_own_and_two_models_in_one_field(tmp_path: Path) -> None:
    own = tmp_path / "mine.txt"
    own.write_text("Listen first. About {target_words} words.\n")
    both = threading.Barrier(2)

    def say_after_the_other_was_asked() -> Any:
        left = [both]

        def say(body: dict[str, Any]) -> str:
            if left:
                left.pop().wait(timeout=30)
            return reply(body)

        return say

    one = FaultServer(say=say_after_the_other_was_asked())
    two = FaultServer(say=say_after_the_other_was_asked(), model="made-up-2")
    with served(one) as url, served(two) as other:
        second = contestants(other, 1, model="made-up-2")[0] | {"name": "two", "prompt": str(own)}
        rules = {"name": "reflector", "kind": "rules", "family": "reflector", "rules": "reflector"}
        config = write_config(tmp_path, [*contestants(url, 1), second, rules], clients=2)
        assert cli(["simulate", str(config)]) == 0
    assert two.bodies[0]["messages"][0]["content"] == "Listen first. About 30 words."
    sessions = records.read(tmp_path / "run" / "sessions.jsonl", Session)
    assert Counter(s.therapist.weights for s in sessions) == {
        f"{MODEL} at {url}": 2,
        f"made-up-2 at {other}": 2,
        "reflector": 2,
    }
    assert not both.broken and len(one.log) == len(two.log) == 2 * 12  # both were asked at once


# --- --dry-run --------------------------------------------------------------------------------------


def test_a_dry_run_counts_what_is_missing_and_asks_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = FaultServer()
    with served(server) as url:
        config = write_config(tmp_path, contestants(url, 2), clients=3, budget_usd=0.0005)
        assert cli(["simulate", str(config), "--dry-run"]) == 0
        header, row, total, budget = capsys.readouterr().out.splitlines()
        assert not (tmp_path / "run").exists() and not server.log
        assert row.startswith(f"{MODEL} at {url}") and header.startswith("model")
        calls, prompt, said_, usd, most_prompt, most_said, most_usd = (
            float(x.replace(",", "")) for x in row.removeprefix(f"{MODEL} at {url}").split()
        )
        assert calls == 3 * 2 * 12 and said_ == calls * 42 and most_said == calls * 64
        assert usd == pytest.approx((prompt + 2 * said_) / 1e6, abs=1e-4) and most_prompt > prompt and most_usd > usd
        assert total.split()[1] == "72" and "NOT enough" in budget
        cli(["simulate", str(config)])
        done = len(records.read(tmp_path / "run" / "turns.jsonl", TurnRecord))
        spent = sum(c.cost_usd for c in read_calls(tmp_path / "run" / "ledger_simulate.jsonl"))
        before = {f: f.stat().st_mtime_ns for f in (tmp_path / "run").rglob("*")}
        capsys.readouterr()
        assert cli(["simulate", str(config), "--dry-run", "budget_usd=9"]) == 0
        _, row, _, budget = capsys.readouterr().out.splitlines()
        assert 0 < done < 72 and int(row.removeprefix(f"{MODEL} at {url}").split()[0]) == 72 - done
        assert f"spent {spent:.4f}" in budget and "enough for the cost at most" in budget
        assert before == {f: f.stat().st_mtime_ns for f in (tmp_path / "run").rglob("*")}


def test_the_estimate_of_a_dry_run_by_hand(scripts_plan: OpenSession) -> None:
    from psychepass.schema import Usage
    from rollout_env.planned import planned_calls
    from rollout_env.therapist import Answer, TherapistEntry

    entry = TherapistEntry.model_validate(contestants("http://h/v1", 1)[0])
    session = scripts_plan
    system = -(-len(session.plan.system.encode()) // 4) + 4
    lines = [-(-len(t.client.trigger.encode()) // 4) + 4 for t in session.plan.script.turns]
    expected = sum(system + sum(lines[: n + 1]) + n * (42 + 4) for n in range(12))
    (found,) = planned_calls([session], [entry])
    assert (found.calls, found.prompt_tokens, found.reply_tokens) == (12, expected, 12 * 42)
    for text in ("x" * 40, "y" * 8):
        session.add(Answer(text, None, Usage()))
    held = system + 10 + 4 + 2 + 4
    expected = sum(held + sum(lines[: n + 1]) + (n - 2) * (42 + 4) for n in range(2, 12))
    (found,) = planned_calls([session], [entry])
    assert (found.calls, found.prompt_tokens) == (10, expected)


@pytest.fixture
def scripts_plan() -> OpenSession:
    from rollout_env.plan import plan_sessions
    from rollout_env.profiles import load_profiles
    from rollout_env.script import build_script
    from rollout_env.therapist import TherapistEntry

    script = build_script(load_profiles()["tomasz-wilk"], "short")
    entry = TherapistEntry.model_validate(contestants("http://h/v1", 1)[0])
    arguments = ([script], [entry], [0], {"tomasz-wilk": "train"}, 30)
    return OpenSession(plan_sessions(*arguments, entry.sampling, None, False)[0])


def test_a_stage_without_models_knows_no_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli(["data", "configs/quickstart/data.yaml", "--dry-run"]) == 2
    assert "--dry-run: this stage calls no model" in capsys.readouterr().err

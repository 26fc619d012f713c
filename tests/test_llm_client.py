"""Clients that a model plays in stage `simulate`: prompt, journal, faults; nothing lost, nothing invented."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from psychepass import llm, records
from psychepass.cli import main as cli
from psychepass.ledger import read_calls
from psychepass.schema import ClientLine, Failure, Script, Session, TurnRecord
from rollout_env.client_lines import adherence
from rollout_env.passive import minimal_turns
from rollout_env.profiles import load_profiles
from tests.endpoint_rig import ROOT, contestants, kill_often, said, told_apart_by_time_alone, write_config
from tests.fault_server import ALWAYS, FAULTS, MODEL, Fault, FaultServer, reply, served
from tests.played_client import client, drawn_kind, hold, is_client, obedient, speak
from tests.test_endpoints import OUTCOMES


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(llm, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(llm, "LONGEST_PAUSE_S", 0.05)


# --- whole runs ------------------------------------------------------------------------------------


def test_300_conversations_of_a_played_client_lose_and_invent_nothing_and_count_everything(tmp_path: Path) -> None:
    faults = tuple(f._replace(share=0.002) if f.kind == "hang" else f for f in FAULTS)
    server = FaultServer(faults, hang_s=60.0, say=speak)
    with served(server) as url:
        limits = {"max_concurrent": 40, "timeout_s": 10.0}  # a busy machine answers in less
        therapists = contestants(url, **limits)
        code, run = hold(tmp_path, url, therapists, 20, seeds=[0, 1, 2, 3, 4], client=client(url, **limits))
    assert code == 0
    sessions, failures = (
        records.read(run / "sessions.jsonl", Session),
        records.read(run / "session_failures.jsonl", Failure),
    )
    lines, journal = records.read(run / "client_lines.jsonl", ClientLine), records.read(run / "turns.jsonl", TurnRecord)
    assert len({s.key for s in sessions} | {f.subject for f in failures}) == len(sessions) + len(failures) == 300
    # nothing invented: each line and reply is what the server said, and each spoken line is a journalled draft
    spoken = {speak(b).strip() for b in server.bodies if is_client(b)}
    replies = {reply(b) for b in server.bodies if not is_client(b)}
    drafts = {(d.session_key, d.turn, d.text) for d in lines if d.text}
    assert {d.text for d in lines if d.text} <= spoken
    for s in sessions:
        assert all((s.key, t.turn, t.client) in drafts and t.therapist in replies for t in s.turns)
        assert s.violations == standing_kinds([d for d in lines if d.session_key == s.key])
    assert "pills" not in "".join(
        (run / n).read_text() for n in ("client_lines.jsonl", "turns.jsonl", "sessions.jsonl")
    )
    # each call counted: by the server, in the ledger, in the records
    by_server = Counter(OUTCOMES.get(s.kind, s.kind) for s in server.log)
    calls = list(read_calls(run / "ledger_simulate.jsonl"))
    by_ledger = Counter(c.outcome for c in calls)
    assert told_apart_by_time_alone(by_server, calls, timeout_s=10.0)
    kinds = Counter(d.violations[0] for d in lines if not d.text)
    assert by_ledger["ok"] == len(journal) + len(lines) - kinds["unreadable"] and kinds["method detail"] > 0
    assert {f.reason for f in failures} == {"unreadable reply, twice", "no client line, twice"}
    spent = sum(r.usage.cost_usd for r in [*journal, *lines, *failures])
    assert sum(c.cost_usd for c in calls) == pytest.approx(spent)
    noted = records.read_json(run / "manifests" / "simulate.json")["notes"]["cost_usd"]
    assert noted == pytest.approx(spent, abs=1e-6)  # of failed sessions too
    ended = {s.key: s for s in sessions}
    of_sessions = sum(r.usage.cost_usd for r in [*journal, *lines] if r.session_key in ended)
    assert sum(s.usage.cost_usd for s in sessions) == pytest.approx(of_sessions)
    # each violation counted, draft by draft against what the server was made to say
    scripts = {s.profile_id: s for s in records.read(run / "scripts.jsonl", Script)}
    wanted = Counter()
    profile = {p.situation: p.profile_id for p in load_profiles().values()}
    for b, s in zip(server.bodies, server.log, strict=True):
        if is_client(b) and s.kind == "reply":
            system = b["messages"][0]["content"]
            script = scripts[next(i for situation, i in profile.items() if situation in system)]
            turn = int(system.split("\nTurn ")[1].split(" ")[0])
            wanted.update(expected(drawn_kind(b), turn in minimal_turns(script, passive=False)))
    counted = Counter(k for d in lines for k in d.violations if k != "unreadable")
    late = by_server["ok"] - by_ledger["ok"]  # answers after the caller gave up: the same line was said again
    assert counted <= wanted and (wanted - counted).total() <= 2 * late
    notes = records.read_json(run / "manifests" / "simulate.json")["notes"]["client_lines"]
    assert notes == adherence(lines) and notes["retried"] > notes["off script"] > 0
    in_sessions = Counter(k for s in sessions for k, n in s.violations.items() for _ in range(n))
    assert all(in_sessions[k] <= notes[k] for k in in_sessions) and not in_sessions["method detail"]


def standing_kinds(lines: list[ClientLine]) -> dict[str, int]:
    """By hand: of each turn the draft without violations, else the one with fewer, else the second."""
    found: Counter[str] = Counter()
    for turn in {d.turn for d in lines}:
        first, *second = sorted((d for d in lines if d.turn == turn), key=lambda d: d.attempt)
        stands = first
        if second and second[0].text and (not first.text or len(second[0].violations) <= len(first.violations)):
            stands = second[0]
        found.update(stands.violations)
    return dict(found)


def expected(kind: str, minimal: bool) -> set[str]:
    """The violations of a line that the made-up client was drawn to say."""
    if kind in ("off trigger", "not minimal"):
        return {"not minimal"} & {kind} if minimal else {"off trigger"}
    also = {"not minimal"} if minimal and kind in ("too long", "helper's words") else set()
    return {kind, *also} - {""} if kind != "method detail" else {kind}


def test_three_kills_with_a_played_client_change_no_record_and_repeat_only_calls_in_flight(tmp_path: Path) -> None:
    server = FaultServer((Fault("500", 0.02), Fault("empty", 0.004, ALWAYS)), delay_s=0.05, say=speak)
    with served(server) as url:
        therapists = contestants(url, max_concurrent=12)
        change = {"client": client(url, max_concurrent=12)}
        plain, killed = (write_config(tmp_path / n, therapists, clients=8, **change) for n in ("plain", "killed"))
        found = kill_often(server, url, plain, killed, 3, random.Random(5))
    assert found.kills == 3 and found.missing == found.extra == 0
    unreadable = len(said(tmp_path / "plain" / "run")["session_failures.jsonl"])
    assert found.repeated <= found.unwritten <= 3 * (12 + unreadable)


def test_a_line_that_left_its_script_twice_is_spoken_and_counted_and_an_unreadable_one_ends_the_session(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = FaultServer(say=lambda body: "How can I help you today?" if is_client(body) else reply(body))
    with served(server) as url:
        code, run = hold(tmp_path, url, contestants(url, 1), clients=1)
        (session,) = records.read(run / "sessions.jsonl", Session)
        n = len(session.turns)
        assert code == 0 and session.violations["helper's words"] == n
        assert session.violations["off trigger"] + session.violations["not minimal"] == n
        assert session.client.kind == "endpoint" and session.client.family == MODEL and session.client.prompt_hash
        assert session.usage.calls == 3 * n  # each line asked twice
        assert f"LLM client: {n} lines; retried {n}, off script {n}, " in capsys.readouterr().err
        server.say = lambda body: " " if is_client(body) else reply(body)
        code, run = hold(tmp_path / "mute", url, contestants(url, 1), clients=1)
    (failure,) = records.read(run / "session_failures.jsonl", Failure)
    assert (
        code == 0
        and failure.reason == "no client line, twice"
        and failure.detail.endswith("turn 1: unreadable (empty), then unreadable (empty)")
    )


def test_rule_therapists_meet_a_played_client_and_go_on_after_a_budget(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = {"name": "reflector", "kind": "rules", "family": "reflector", "rules": "reflector"}
    server = FaultServer(say=obedient)
    with served(server) as url:
        code, run = hold(tmp_path, url, [rules], budget_usd=0.006)
        error = capsys.readouterr().err
        assert code == 2 and "2 of 2 sessions were left open" in error and "budget_usd is 0.006" in error
        asked = len(server.log)
        assert 0 < asked < 24 and len(records.read(run / "client_lines.jsonl", ClientLine)) == asked
        code, run = hold(tmp_path, url, [rules], budget_usd=1.0)
    sessions = records.read(run / "sessions.jsonl", Session)
    assert code == 0 and len(sessions) == 2 and len(server.log) == 24 and not any(s.violations for s in sessions)
    scripts = {s.id: s for s in records.read(run / "scripts.jsonl", Script)}
    assert all([t.client for t in s.turns] == [t.client.trigger for t in scripts[s.script_id].turns] for s in sessions)


def test_where_the_clients_endpoint_gives_no_answer_sessions_stay_open(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm, "TRIES", 2)
    players, therapists = FaultServer((Fault("500", 0.04, ALWAYS),), say=obedient), FaultServer()
    with served(players) as url, served(therapists) as other:
        code, run = hold(tmp_path, url, contestants(other), clients=6)
        error = capsys.readouterr().err
        done = len(records.read(run / "sessions.jsonl", Session))
        assert code == 75 and 0 < done < 18
        assert f"{18 - done} of 18 sessions were left open ({18 - done}: {MODEL} at {url}: status 500: " in error
        drafts, asked = len(records.read(run / "client_lines.jsonl", ClientLine)), len(players.log)
        players.faults = ()
        assert hold(tmp_path, url, contestants(other), clients=6)[0] == 0
    assert len(players.log) - asked == 18 * 12 - drafts


def test_a_scripted_client_leaves_no_trace_of_all_this(tmp_path: Path) -> None:
    with served(FaultServer()) as url:
        code, run = hold(tmp_path, url, contestants(url, 1), clients=1, client=None)
    assert code == 0 and not (run / "client_lines.jsonl").exists()
    assert "violations" not in (run / "sessions.jsonl").read_text()


# --- the count beforehand, and bad input -------------------------------------------------------------


def test_a_dry_run_counts_the_clients_calls_and_asks_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = {"name": "reflector", "kind": "rules", "family": "reflector", "rules": "reflector"}
    server = FaultServer(say=obedient)
    with served(server) as url:
        config = write_config(tmp_path, [*contestants(url, 2), rules], clients=2, client=client(url), budget_usd=9.0)
        assert cli(["simulate", str(config), "--dry-run"]) == 0
        _, therapists, clients, total, _ = capsys.readouterr().out.splitlines()
        assert not server.log and not (tmp_path / "run").exists()
        assert therapists.split()[3] == "48" and clients.startswith(f"{MODEL} at {url} (clients)")
        numbers = [float(x.replace(",", "")) for x in clients.split("(clients)")[1].split()]
        assert numbers[0] == 72 and total.split()[1] == "120"
        assert cli(["simulate", str(config)]) == 0
        asked = [c for c in read_calls(tmp_path / "run" / "ledger_simulate.jsonl") if c.about.endswith("client")]
        assert len(asked) == 72 and numbers[4] > 2 * numbers[1] and numbers[5] == 2 * 72 * 96
        # the estimate: each prompt of the client as it was sent, where replies have the expected length
        first = [b for b in server.bodies if is_client(b) and len(b["messages"]) == 2]
        sent = sum(-(-len(m["content"].encode()) // 4) + 4 for b in first for m in b["messages"])
        assert 0 < sent < numbers[1]
        capsys.readouterr()
        assert cli(["simulate", str(config), "--dry-run"]) == 0
        _, therapists, total, _ = capsys.readouterr().out.splitlines()
        assert therapists.split()[3] == total.split()[1] == "0"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"mode": "active"}, "without 'endpoint' it is the scripted client; permitted: client: null, or mode: passive"),
        ({"mode": "loud"}, "client.mode: Input should be 'active' or 'passive', got 'loud'"),
        ({"sampling": None}, "a client with 'endpoint' needs 'sampling'"),
        ({"endpoint": {"model": "made-up-9"}}, "has no model 'made-up-9'; it lists made-up-1 "),
        ({"endpoint": {"key_env": "NO_SUCH_KEY"}}, "the environment variable NO_SUCH_KEY is not set"),
        (
            {"endpoint": {"base_url": "http://127.0.0.1:9/v1"}},
            "http://127.0.0.1:9/v1 (model 'made-up-1') cannot be reached",
        ),
        (
            {"endpoint": {"price": {"input": -1, "output": 2}}},
            "price.input: Input should be greater than or equal to 0",
        ),
    ],
)
@pytest.mark.parametrize("kind", ["endpoint", "rules"])
def test_a_bad_client_is_one_error_before_any_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], told: str, kind: str
) -> None:
    server = FaultServer(say=obedient)
    with served(server) as url:
        entry = client(url)
        if "endpoint" in change:
            entry["endpoint"] |= change["endpoint"]
        elif change.get("mode") == "active":
            entry = change
        else:
            entry |= change
        rules = {"name": "reflector", "kind": "rules", "family": "reflector", "rules": "reflector"}
        code, run = hold(tmp_path, url, contestants(url, 1) if kind == "endpoint" else [rules], client=entry)
        error = [x for x in capsys.readouterr().err.splitlines() if x.startswith("psychepass simulate: ")]
        assert code == 2 and len(error) == 1 and told in error[0] and "Traceback" not in error[0]
        assert not server.log and not (run / "manifests" / "simulate.json").exists()

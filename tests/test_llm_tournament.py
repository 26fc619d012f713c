"""Stage `tournament` with LLM judges: nothing lost, nothing invented, nothing asked twice."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from psychepass import llm, records
from psychepass.cli import main as cli
from psychepass.ledger import read_calls
from psychepass.schema import Dimension, Failure, Session
from tests.conftest import ROOT
from tests.endpoint_rig import kill_often, said, told_apart_by_time_alone
from tests.fault_server import ALWAYS, JUDGE_FAULTS, JUDGED, MODEL, Fault, FaultServer, reply, served
from tests.judge_rig import FILES, judges, read, write_run
from tournament.llm_judge import JudgeReply, judge_prompt

OUTCOMES = {"429": "status 429", "500": "status 500", "hang": "time-out", "cut-off JSON": "broken JSON"}
OUTCOMES |= {"cut-off transfer": "connection", "thoughts only": "empty", "reply": "ok", "cut-off text": "ok"}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(llm, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(llm, "LONGEST_PAUSE_S", 0.05)


def call_again(config: Path) -> int:
    """Call the stage once more although it has ended."""
    manifest = config.parent / "run" / "manifests" / "tournament.json"
    records.write_json(manifest, records.read_json(manifest) | {"ended": None})
    return cli(["tournament", str(config)])


def test_300_conversations_are_judged_with_nothing_lost_nothing_invented_and_each_failure_counted(
    tmp_path: Path,
) -> None:
    clients, contestants, presentations = 50, 6, 2 * 50 * 3 * 3
    server = FaultServer(JUDGE_FAULTS, hang_s=60.0)
    with served(server) as url:
        config = write_run(tmp_path, judges(url, max_concurrent=40, timeout_s=4.0), clients, contestants)
        assert cli(["tournament", str(config)]) == 0
        asked, ratings = len(server.log), (tmp_path / "run" / "ratings.json").read_bytes()
        assert call_again(config) == 0 and len(server.log) == asked  # nothing is asked again
    run = tmp_path / "run"
    assert (run / "ratings.json").read_bytes() == ratings
    battles, failures, replies = (read(run, name) for name in FILES)
    shown = {(b.session_a, b.session_b) for b in battles} | {tuple(f.subject.split()) for f in failures}
    assert len(battles) + len(failures) == len(shown) == presentations and failures
    assert all((b, a) in shown for a, b in shown)  # both orders
    # nothing invented: every battle says what the server said to a prompt with exactly these two sessions
    sessions = {s.id: s for s in records.read(run / "sessions.jsonl", Session)}
    server_said: dict[str, list[dict[str, str]]] = {}
    for body in server.bodies:
        shown_to_judge = body["messages"][0]["content"].partition("\n\nThis answer could not be read: ")[0]
        winners = {key: v["winner"] for key, v in json.loads(reply(body)).items()}
        server_said.setdefault(shown_to_judge, []).append(winners)
    for b in battles:
        held = {key: (b.overall if key == "overall" else b.verdicts[Dimension(key)]).winner for key in JUDGED}
        assert held in server_said[judge_prompt(sessions[b.session_a], sessions[b.session_b])]
    # each failure counted: by the server, in the ledger, in the records
    calls = list(read_calls(run / "ledger_tournament.jsonl"))
    by_server, by_ledger = Counter(OUTCOMES.get(s.kind, s.kind) for s in server.log), Counter(c.outcome for c in calls)
    assert told_apart_by_time_alone(by_server, calls, timeout_s=4.0)
    assert set(by_ledger) == {*OUTCOMES.values(), "error body", "wrong role"}
    assert len(replies) == by_ledger["ok"] + by_ledger["empty"] + by_ledger["wrong role"]
    faulty = Counter((r.session_a, r.session_b) for r in replies if r.fault)
    assert sum(n == 2 for n in faulty.values()) == len(failures)
    assert sum(r.usage.cost_usd for r in [*battles, *failures]) == pytest.approx(sum(c.cost_usd for c in calls))
    table = json.loads(ratings)
    assert table["failures"]["n"] == len(failures) and table["n_battles"] == len(battles)
    assert table["failures"]["share"] == round(len(failures) / presentations, 6)
    orders = Counter(frozenset((b.session_a, b.session_b)) for b in battles)
    assert table["failures"]["one_order"] == sum(n == 1 for n in orders.values())


def test_what_got_no_answer_is_judged_on_the_next_run_and_failures_are_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm, "TRIES", 2)
    server = FaultServer((Fault("500", 0.1, ALWAYS), Fault("cut-off text", 0.3, ALWAYS)))
    with served(server) as url:
        config = write_run(tmp_path, judges(url), 8, 4)
        assert cli(["tournament", str(config)]) == 75
        error = [x for x in capsys.readouterr().err.splitlines() if x.startswith("psychepass tournament: ")]
        run = tmp_path / "run"
        battles, failures, replies = (read(run, name) for name in FILES)
        judged = {frozenset((b.session_a, b.session_b)) for b in battles}
        judged |= {frozenset(f.subject.split()) for f in failures}
        whole = Counter(frozenset((b.session_a, b.session_b)) for b in battles)
        whole += Counter(frozenset(f.subject.split()) for f in failures)
        left = 32 - sum(n == 2 for n in whole.values())
        assert 0 < left < 32 and f"{left} of 32 matches are left to judge" in error[0] and len(error) == 1
        assert f"{MODEL} at {url}: status 500: server_error made to fail" in error[0]
        assert not (run / "ratings.json").exists()
        held, asked = {name: (run / name).read_bytes() for name in FILES}, len(server.log)
        heard = {(r.session_a, r.session_b, r.attempt) for r in replies}
        server.faults = ()
        assert cli(["tournament", str(config)]) == 0
    assert failures and all((run / name).read_bytes().startswith(data) for name, data in held.items())
    again = [r for r in read(run, "judge_replies.jsonl") if (r.session_a, r.session_b, r.attempt) not in heard]
    assert len(server.log) - asked == len(again)
    assert len(read(run, "battles.jsonl")) + len(read(run, "failures.jsonl")) == 2 * 32
    assert len(read(run, "failures.jsonl")) == len(failures)


def test_a_budget_stops_cleanly_and_a_higher_one_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = FaultServer(delay_s=0.005)
    with served(server) as url:
        config = write_run(tmp_path, judges(url), 4, 4)
        assert cli(["tournament", str(config), "budget_usd=0.03"]) == 2
        error, ledger = capsys.readouterr().err, tmp_path / "run" / "ledger_tournament.jsonl"
        spent = sum(c.cost_usd for c in read_calls(ledger))
        assert "of 16 matches are left to judge, because judgements could not be had (" in error
        assert "budget_usd is 0.03, " in error and 0.02 < spent <= 0.03
        assert len(server.log) == len(read(tmp_path / "run", "judge_replies.jsonl"))
        assert cli(["tournament", str(config), "budget_usd=1"]) == 0
    assert len(server.log) == 32


def test_on_a_resume_a_judge_that_is_down_holds_up_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    up, down = FaultServer(delay_s=0.005), FaultServer(delay_s=0.005)
    with served(up) as url, served(down) as other:
        config = write_run(tmp_path, [*judges(url, 1), judges(other, 2)[1]], 4, 4)
        assert cli(["tournament", str(config), "budget_usd=0.03"]) == 2
        asked, down.down = len(down.log), True
        assert 0 < asked < 32  # all of the first round, where the other server is slow
        assert cli(["tournament", str(config)]) == 75
        assert f": {MODEL} at {other}: cannot be reached)" in capsys.readouterr().err
        assert len(up.log) >= 16 and len(down.log) == asked
        down.down = False
        assert cli(["tournament", str(config)]) == 0
    assert len(up.log) == len(down.log) == 32


def test_a_panel_votes_and_each_judge_is_asked_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = FaultServer((Fault("500", 0.1),)), FaultServer(model="made-up-2")
    with served(one) as url, served(two) as other:
        entries = [*judges(url, 2), judges(other, 1, model="made-up-2")[0] | {"name": "third", "family": "c1"}]
        config = write_run(tmp_path, entries, 3, 4)
        assert cli(["tournament", str(config)]) == 0
        assert "judge third also plays: it and contestant c1 share family c1" in capsys.readouterr().err
        asked = len(one.log) + len(two.log)
        assert call_again(config) == 0 and len(one.log) + len(two.log) == asked
    battles = read(tmp_path / "run", "battles.jsonl")
    assert len(battles) == 24 and {len(b.votes) for b in battles} == {3}
    replies = read(tmp_path / "run", "judge_replies.jsonl")
    assert (
        Counter(r.judge.name for r in replies)
        == {"judge-0": 24, "judge-1": 24, "third": 24}
        == Counter({"judge-0": 24, "judge-1": 24, "third": len(two.log)})
    )
    heard = {(r.judge.name, r.session_a, r.session_b): json.loads(r.text) for r in replies}
    for b in battles:
        for vote in b.votes:
            held = heard[vote.judge.name, b.session_a, b.session_b]
            assert vote.verdicts[Dimension.SKILL].winner == held["skill"]["winner"]
    table = records.read_json(tmp_path / "run" / "ratings.json")
    assert table["judge"] == "panel of judge-0, judge-1, third" and len(table["judges"]) == 3
    assert table["judge_also_plays"] == [{"judge": "third", "contestant": "c1", "same": "family c1"}]
    frozen = records.read_json(tmp_path / "run" / "judge.json")
    assert [j["family"] for j in frozen["panel"]["judges"]] == ["made-up", "made-up", "c1"]
    assert frozen["judge"]["name"] == "reference-judge" and frozen["shadow"]["name"] == "reference-shadow"


@pytest.mark.parametrize("pairing", ["round_robin", "adaptive"])
def test_the_other_pairings(tmp_path: Path, pairing: str) -> None:
    with served(FaultServer()) as url:
        config = write_run(tmp_path, judges(url), 3, 4, pairing=pairing)
        assert cli(["tournament", str(config)]) == 0
    table = records.read_json(tmp_path / "run" / "ratings.json")
    assert table["n_battles"] == 2 * 3 * {"round_robin": 6, "adaptive": 4}[pairing]


def test_analysis_of_a_judge_that_is_not_order_free(tmp_path: Path) -> None:
    with served(FaultServer()) as url:
        config = write_run(tmp_path, judges(url), 6, 4)
        assert cli(["tournament", str(config)]) == 0
    run = tmp_path / "run"
    battles = read(run, "battles.jsonl")
    by_order = {(b.session_a, b.session_b): b for b in battles}
    same = [b.overall.winner == by_order[b.session_b, b.session_a].swapped().overall.winner for b in battles]
    table = records.read_json(run / "ratings.json")
    assert table["order_consistency"] == round(sum(same) / len(same), 6) and 0 < table["order_consistency"] < 1
    assert table["tie_rate"] == round(sum(b.overall.winner == "tie" for b in battles) / len(battles), 6) > 0
    (tmp_path / "analysis.yaml").write_text(f"run: {run}\n")
    assert cli(["analysis", str(tmp_path / "analysis.yaml")]) == 0
    found = records.read_json(run / "analysis" / "analysis.json")
    bias = {(r["measure"], r["verdict"]): r["value"] for r in found["tables"]["position_bias"]}
    first = sum(b.overall.winner == "A" for b in battles) / len(battles)
    assert bias["overall", "A"] == pytest.approx(first)
    consistency = {r["measure"]: r["value"] for r in found["tables"]["order_consistency"] if r["of"] == "measure"}
    assert consistency["overall"] == pytest.approx(table["order_consistency"], abs=1e-6)
    assert consistency["diversity"] == 1  # computed, so the order is nothing to it
    assert found["judge"]["judge_also_plays"] == [] and table["shown"] == "stage slices"
    assert {row["shown"] for row in found["tables"]["position_bias"]} == {"stage slices"}


def test_failed_judgements_have_a_reason_each(tmp_path: Path) -> None:
    server = FaultServer((Fault("cut-off text", 0.5, ALWAYS),))
    with served(server) as url:
        assert cli(["tournament", str(write_run(tmp_path, judges(url), 4, 3))]) == 0
    failures: list[Failure] = read(tmp_path / "run", "failures.jsonl")
    replies: list[JudgeReply] = read(tmp_path / "run", "judge_replies.jsonl")
    assert failures and {f.stage for f in failures} == {"tournament"}
    assert all(f.detail.count("it was cut off at 512 tokens") == 2 and f.usage.calls == 2 for f in failures)
    assert {r.text for r in replies if r.fault} and len(replies) == len(server.log)


def test_a_judge_that_fails_every_time_rates_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = FaultServer((Fault("empty", 1.0, ALWAYS),))
    with served(server) as url:
        config = write_run(tmp_path, judges(url), 3, 3)
        for _ in range(2):
            assert cli(["tournament", str(config)]) == 2
            assert "battles.jsonl: 0 battles, 12 failures: " in capsys.readouterr().err
            assert len(server.log) == 24
    assert not (tmp_path / "run" / "ratings.json").exists()


def test_three_kills_change_no_record_and_repeat_only_calls_in_flight(tmp_path: Path) -> None:
    server = FaultServer((Fault("500", 0.02), Fault("cut-off text", 0.2, ALWAYS)), delay_s=0.05)
    with served(server) as url:
        entries = judges(url, 2, max_concurrent=6)
        plain, killed = (write_run(tmp_path / n, entries, 10, 4) for n in ("plain", "killed"))
        found = kill_often(server, url, plain, killed, 3, random.Random(5))
    assert found.kills == 3 and found.missing == found.extra == 0
    assert found.repeated <= found.unwritten <= 3 * 2 * 6
    written = said(plain.parent / "run", "tournament")
    assert len(written["failures.jsonl"]) > 0 and len(written["judge_replies.jsonl"]) > 2 * 2 * 10 * 4

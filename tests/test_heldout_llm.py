"""Stages `heldout` and `best-of-n` with LLM judges, and `heldout` with an LLM client, over a made-up server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from psychepass import llm, records, report_data
from psychepass.cli import main as cli
from psychepass.config import load
from psychepass.ledger import read_calls
from psychepass.schema import Battle, Script, Session
from tests import judge_rig, test_best_of_n
from tests.conftest import ROOT
from tests.endpoint_rig import asked, contestants, forget
from tests.fault_server import ALWAYS, MODEL, Fault, FaultServer, served
from tests.judge_rig import judges
from tests.played_client import client, obedient
from tests.test_heldout import CONFIG, SPLITS, Scorer, overrides, run_dir
from tests.test_heldout import scripts as scripts
from tests.tiny import tiny_model
from tournament.choices import Draw
from tournament.endpoint_sampler import PromptReply
from tournament.heldout_setup import HeldoutConfig
from tournament.paired_rewards import PromptRewards
from tournament.run import TournamentConfig

CLIENTS, PAIRS = 2, 5  # a client: two seeds of one policy meet two of the other, and the base's meet
REFERENCE = ("heldout/battles.jsonl", "heldout/sessions.jsonl", "heldout/rewards.jsonl")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(llm, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(llm, "LONGEST_PAUSE_S", 0.05)


@pytest.fixture
def scorer() -> Iterator[Scorer]:
    made = Scorer()
    yield made
    made.close()


def call(run: Path, scorer: Scorer, *more: str, clients: int = CLIENTS, **keys: Any) -> list[str]:
    """The stage's call; `keys` of the config as they are."""
    given = [f"{k}={json.dumps(v)}" for k, v in keys.items()]
    return ["heldout", CONFIG, *overrides(run, scorer, heldout_clients=clients), *given, *more]


def read(folder: Path, name: str) -> list[Any]:
    return judge_rig.read(folder / "panel", name)


def summary(run: Path) -> dict[str, Any]:
    return records.read_json(run / "heldout" / "summary.json")


def row(text: str, model: str) -> list[float]:
    line = next(x for x in text.splitlines() if x.startswith(model))
    return [float(x.replace(",", "")) for x in line.removeprefix(model).split()]


# --- LLM judges measure ------------------------------------------------------------------------------


def test_llm_judges_measure_beside_the_reference_judge_and_its_shadow(
    tmp_path: Path, scripts: list[Script], scorer: Scorer
) -> None:
    n_clients = 6
    plain, run = (run_dir(tmp_path / "runs" / name, scripts) for name in "ab")
    assert cli(call(plain, scorer, clients=n_clients)) == 0
    server = FaultServer((Fault("500", 0.1), Fault("cut-off text", 0.5, ALWAYS)))
    with served(server) as url:
        assert cli(call(run, scorer, judges=judges(url), clients=n_clients)) == 0
        n = len(server.log)
        assert cli(call(run, scorer, judges=judges(url), clients=n_clients)) == 0 and len(server.log) == n
    for name in REFERENCE:  # whoever measures, these are the same
        ours, theirs = ({r["id"] for r in map(json.loads, (f / name).read_text().splitlines())} for f in (run, plain))
        assert ours == theirs
    battles, failures = read(run / "heldout", "battles.jsonl"), read(run / "heldout", "failures.jsonl")
    assert len(battles) + len(failures) == n_clients * PAIRS * 2 and failures
    assert {f.stage for f in failures} == {"heldout"} and {b.judge.name for b in battles} == {"judge-0"}
    found, before = summary(run), summary(plain)
    assert found["overall"]["judge"] == "judge-0" and found["base_vs_base"]["overall"]["judge"] == "judge-0"
    ids = {s.id for s in records.read(run / "heldout" / "sessions.jsonl", Session) if s.therapist.name == "explorer"}
    assert found["overall"]["battles"] == sum(bool({b.session_a, b.session_b} & ids) for b in battles)
    assert found["shadow"] == before["shadow"]
    assert found["reference"] == {"overall": before["overall"], "dimensions": before["dimensions"]}
    assert found["failures"] == {"n": len(failures), "share": len(failures) / 60, "judgements": 60}
    assert found["gaming"] == before["gaming"] and found["reward"] == before["reward"]
    assert found["gate"]["shadow"] == before["gate"]["shadow"] and found["gate"]["floor"] == before["gate"]["floor"]
    assert found["gate"]["dimensions"] != before["gate"]["dimensions"]
    (described,) = found["llm_judges"]["judges"]
    assert described["name"] == "judge-0" and found["llm_judges"]["also_plays"] == []
    assert "The reference judge labels and rewards; judge-0 measures." in found["words"]
    assert "judge-0 measured" in report_data.headline(found)[-1]
    assert "llm_judges" not in before and "reference" not in before


def test_scores_are_those_of_the_verdicts_from_the_aligned_side(
    tmp_path: Path, scripts: list[Script], scorer: Scorer
) -> None:
    """By hand from the battles: each counts from the aligned policy's side, in whichever order it was shown."""
    run = run_dir(tmp_path / "runs" / "a", scripts)
    with served(FaultServer()) as url:
        assert cli(call(run, scorer, judges=judges(url, 3))) == 0
    sessions = {s.id: s for s in records.read(run / "heldout" / "sessions.jsonl", Session)}
    points: dict[str, list[int]] = {}
    for b in records.read(run / "heldout" / "panel" / "battles.jsonl", Battle):
        assert len(b.votes) == 3
        sides = {"A": sessions[b.session_a].therapist.name, "B": sessions[b.session_b].therapist.name}
        if set(sides.values()) == {"explorer", "adviser"}:
            won = sides.get(b.overall.winner)
            points.setdefault(b.profile_id, []).append(0 if won is None else 1 if won == "explorer" else -1)
    assert {len(v) for v in points.values()} == {8}
    expected = {client: sum(v) / len(v) for client, v in points.items()}
    found = summary(run)
    assert {c: of["overall"] for c, of in found["clients"].items()} == pytest.approx(expected)
    assert found["overall"]["judge"] == "panel of judge-0, judge-1, judge-2"


def test_a_judge_that_also_plays_is_named(tmp_path: Path, scripts: list[Script], scorer: Scorer) -> None:
    run = run_dir(tmp_path / "runs" / "a", scripts)
    with served(FaultServer()) as url:
        entries = [judges(url)[0] | {"family": "explorer"}]
        assert cli(call(run, scorer, judges=entries, clients=1)) == 0
    also = {"judge": "judge-0", "contestant": "explorer", "same": "family explorer"}
    assert summary(run)["llm_judges"]["also_plays"] == [also]


def test_a_kill_loses_calls_in_flight_alone(tmp_path: Path, scripts: list[Script], scorer: Scorer) -> None:
    plain, run = (run_dir(tmp_path / "runs" / name, scripts) for name in "ab")
    server = FaultServer(delay_s=0.1)
    with served(server) as url:
        entries = judges(url, 2, max_concurrent=3)
        assert cli(call(plain, scorer, judges=entries)) == 0
        undisturbed, in_flight = asked(server), 0
        forget(server)
        for wanted in (6, 20):
            child = subprocess.Popen(
                [sys.executable, "-m", "psychepass.cli", *call(run, scorer, judges=entries)],
                cwd=ROOT,
                stderr=subprocess.DEVNULL,
            )
            deadline = time.monotonic() + 200
            while len(server.log) < wanted:
                assert child.poll() is None and time.monotonic() < deadline
                time.sleep(0.005)
            os.kill(child.pid, signal.SIGKILL)
            child.wait()
            in_flight += 3  # calls at once
            while server.open:
                time.sleep(0.01)
        assert cli(call(run, scorer, judges=entries)) == 0
    assert 0 <= (asked(server) - undisturbed).total() <= in_flight and not undisturbed - asked(server)
    for name in judge_rig.FILES:
        assert {r.id for r in read(run / "heldout", name)} == {r.id for r in read(plain / "heldout", name)}
    assert summary(run) | {"opened": 0} == summary(plain) | {"opened": 0}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model": "made-up-9"}, "has no model 'made-up-9'"),
        ({"key_env": "NO_SUCH_KEY"}, "the environment variable NO_SUCH_KEY is not set"),
        ({"base_url": "http://127.0.0.1:9/v1"}, "cannot be reached"),
    ],
)
def test_a_wrong_judge_is_named_before_the_set_is_opened_and_can_be_mended(
    tmp_path: Path, scripts: list[Script], scorer: Scorer, capsys: Any, change: dict[str, Any], told: str
) -> None:
    run, server = run_dir(tmp_path / "runs" / "a", scripts), FaultServer()
    with served(server) as url:
        wrong = judges(url)
        wrong[0]["endpoint"] |= change
        assert cli(call(run, scorer, judges=wrong, clients=1)) == 2
        assert told in capsys.readouterr().err and not server.log
        assert not (run.parent / "openings.json").exists() and not (run / "heldout" / "sessions.jsonl").exists()
        twice = [*judges(url), *judges(url)]
        assert cli(call(run, scorer, judges=twice, clients=1)) == 2
        assert "two judges are called judge-0" in capsys.readouterr().err
        assert cli(call(run, scorer, judges=judges(url), clients=1)) == 0
        other = [judges(url)[0] | {"seed": 7}]
        assert cli(call(run, scorer, judges=other, clients=1)) == 2
        assert "ran before with other config (judges" in capsys.readouterr().err
        (run / "manifests" / "heldout.json").unlink()
        n = len(server.log)
        assert cli(call(run, scorer, judges=other, clients=1)) == 2
        error = " ".join(capsys.readouterr().err.split())
        assert ("seed 7" in error and "use another run directory" in error) or "one ranking has one judge" in error
        assert len(server.log) == n


def test_a_dry_run_plans_and_a_budget_stops_cleanly(
    tmp_path: Path, scripts: list[Script], scorer: Scorer, capsys: Any
) -> None:
    run, server = run_dir(tmp_path / "runs" / "a", scripts), FaultServer()
    with served(server) as url:
        entries, model = judges(url, 2), f"{MODEL} at {url}"
        before = sorted(run.parent.rglob("*"))
        assert cli([*call(run, scorer, judges=entries), "--dry-run"]) == 0
        calls, prompt, *_ = row(capsys.readouterr().out, model)
        assert calls == CLIENTS * PAIRS * 2 * 2 and not server.log
        assert set(run.parent.rglob("*")) - set(before) <= {run / "splits.yaml"}
        assert cli(call(run, scorer, judges=entries, budget_usd=0.02)) == 2
        error = " ".join(capsys.readouterr().err.split())
        assert "matches are left to judge" in error and "budget_usd is 0.02" in error
        assert sum(c.cost_usd for c in read_calls(run / "heldout" / "ledger_heldout.jsonl")) <= 0.02
        assert not (run / "heldout" / "summary.json").exists()
        done = len(read(run / "heldout", "judge_replies.jsonl"))
        assert 0 < done < calls
        assert cli([*call(run, scorer, judges=entries), "--dry-run"]) == 0
        assert row(capsys.readouterr().out, model)[0] == calls - done
        assert cli(call(run, scorer, judges=entries, budget_usd=5.0)) == 0
        sent = [len(b["messages"][0]["content"].encode()) / 4 for b in server.bodies]
        assert len(sent) == calls and prompt / calls == pytest.approx(sum(sent) / len(sent), rel=0.25)
        assert cli([*call(run, scorer, judges=entries), "--dry-run"]) == 0
        assert row(capsys.readouterr().out, model)[0] == 0
    assert cli([*call(run, scorer), "--dry-run"]) == 2
    assert "this stage calls no model; call it without" in capsys.readouterr().err


def test_a_judge_that_is_never_readable_is_an_error_and_no_figure(
    tmp_path: Path, scripts: list[Script], scorer: Scorer, capsys: Any
) -> None:
    run = run_dir(tmp_path / "runs" / "a", scripts)
    with served(FaultServer((Fault("cut-off text", 1.0, ALWAYS),))) as url:
        assert cli(call(run, scorer, judges=judges(url), clients=1)) == 2
    assert "no judgement of base against aligned could be read" in " ".join(capsys.readouterr().err.split())
    assert len(read(run / "heldout", "failures.jsonl")) == PAIRS * 2
    assert not (run / "heldout" / "summary.json").exists()


# --- an LLM plays the clients --------------------------------------------------------------------------


def test_an_llm_plays_the_held_out_clients(tmp_path: Path, scripts: list[Script], scorer: Scorer, capsys: Any) -> None:
    run, server = run_dir(tmp_path / "runs" / "a", scripts), FaultServer(say=obedient)
    with served(server) as url:
        keys = {"client": client(url), "judges": judges(url), "budget_usd": 1.0}
        assert cli([*call(run, scorer, clients=1, **keys), "--dry-run"]) == 0
        out = capsys.readouterr().out
        lines, judged = row(out, f"{MODEL} at {url} (clients)")[0], row(out.splitlines()[2], f"{MODEL} at {url}")[0]
        assert not server.log and not (run.parent / "openings.json").exists()
        assert cli(call(run, scorer, clients=1, **keys)) == 0
        assert len(server.log) == lines + judged
    sessions = records.read(run / "heldout" / "sessions.jsonl", Session)
    assert {s.client.name for s in sessions} == {f"{MODEL} as client"} and {s.split for s in sessions} == {"heldout"}
    assert lines == sum(len(s.turns) for s in sessions)
    found = summary(run)
    assert found["client"] == {"name": f"{MODEL} as client", "lines": {"lines": lines}}
    also = [x["contestant"] for x in found["llm_judges"]["also_plays"]]
    assert also == [f"{MODEL} as client"]  # the judge's model plays the client
    calls = list(read_calls(run / "heldout" / "ledger_heldout.jsonl"))
    assert len(calls) == lines + judged and not (run / "heldout" / "ledger_simulate.jsonl").exists()


def test_what_got_no_answer_of_judges_and_policies_is_left_for_later(
    tmp_path: Path, scripts: list[Script], scorer: Scorer, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm, "TRIES", 1)
    run, server, judging = run_dir(tmp_path / "runs" / "a", scripts), FaultServer(), FaultServer()
    with served(server) as url, served(judging) as other:
        keys = served_policies(url) | {"prompts": 3, "samples": 2, "judges": judges(other)}
        down = (Fault("500", 1.0, ALWAYS),)
        steps = (((), down, "10 of 10 matches are left to judge"), (down, (), "12 of 12 replies of base could not be"))
        for server.faults, judging.faults, told in steps:
            assert cli(call(run, scorer, clients=2, **keys)) == 75
            assert told in " ".join(capsys.readouterr().err.split())
        server.faults = ()
        assert cli(call(run, scorer, clients=2, **keys)) == 0


def test_a_wrong_client_is_named_before_the_set_is_opened_and_a_budget_leaves_sessions_open(
    tmp_path: Path, scripts: list[Script], scorer: Scorer, capsys: Any
) -> None:
    run, server = run_dir(tmp_path / "runs" / "a", scripts), FaultServer(say=obedient)
    with served(server) as url:
        wrong = client(url, model="made-up-9")
        assert cli(call(run, scorer, clients=1, client=wrong)) == 2
        assert "has no model 'made-up-9'" in capsys.readouterr().err and not server.log
        assert not (run.parent / "openings.json").exists()
        right = client(url)
        assert cli(call(run, scorer, clients=1, client=right, budget_usd=0.01)) == 2
        assert "sessions were left open" in " ".join(capsys.readouterr().err.split())
        assert cli(call(run, scorer, clients=1, client=right, budget_usd=1.0)) == 0
        turns = sum(len(s.turns) for s in records.read(run / "heldout" / "sessions.jsonl", Session))
        assert len(server.log) == turns  # nothing is asked twice
    assert "llm_judges" not in summary(run) and summary(run)["overall"]["judge"] == "reference-judge"
    assert len(records.read_json(run.parent / "openings.json")) == 1


def test_passive_clients_answer_in_short(tmp_path: Path, scripts: list[Script], scorer: Scorer) -> None:
    run = run_dir(tmp_path / "runs" / "a", scripts)
    assert cli(call(run, scorer, clients=1, client={"mode": "passive"}, form="full")) == 0
    plain = run_dir(tmp_path / "runs" / "b", scripts)
    assert cli(call(plain, scorer, clients=1, form="full")) == 0
    words = [
        sum(len(t.client.split()) for t in records.read(r / "heldout" / "sessions.jsonl", Session)[0].turns)
        for r in (run, plain)
    ]
    assert words[0] < words[1]


# --- policies behind endpoints --------------------------------------------------------------------------


def served_policies(url: str, **change: Any) -> dict[str, Any]:
    base, aligned = contestants(url, 2, **change)
    same: dict[str, Any] = {"rules": None}  # the test config's rules are taken out
    return {"base": base | same | {"name": "base"}, "aligned": aligned | same | {"name": "aligned"}}


def test_policies_behind_endpoints_are_asked_scored_and_never_twice(
    tmp_path: Path, scripts: list[Script], scorer: Scorer, capsys: Any
) -> None:
    run = run_dir(tmp_path / "runs" / "a", scripts)
    server = FaultServer((Fault("500", 0.05), Fault("empty", 0.4)))
    with served(server) as url:
        keys = served_policies(url) | {"prompts": 3, "samples": 2}
        assert cli([*call(run, scorer, clients=1, **keys), "--dry-run"]) == 0
        out = capsys.readouterr().out
        replies = [row(line, line.split(")")[0] + ")") for line in out.splitlines() if "(replies for rewards)" in line]
        assert [r[0] for r in replies] == [6, 6] and not server.log
        assert cli(call(run, scorer, clients=1, budget_usd=0.005, **keys)) == 2
        assert "were left open" in " ".join(capsys.readouterr().err.split())
        assert cli(call(run, scorer, clients=1, budget_usd=5.0, **keys)) == 0
        n = len(server.log)
        assert cli([*call(run, scorer, clients=1, **keys), "--dry-run"]) == 0
        assert row(capsys.readouterr().out, "total")[0] == 0
        (run / "manifests" / "heldout.json").unlink()
        (run / "heldout" / "rewards.jsonl").unlink()  # scored again from what was said
        before = summary(run)
        assert cli(call(run, scorer, clients=1, **keys)) == 0 and len(server.log) == n
    found = summary(run)
    assert found == before and found["policies"]["aligned"]["weights"].startswith(f"{MODEL} at ")
    assert "taken on trust" in found["warnings"][-1]
    said = records.read(run / "heldout" / "replies.jsonl", PromptReply)
    rewards = records.read(run / "heldout" / "rewards.jsonl", PromptRewards)
    assert {r.policy for r in rewards} == {"base", "aligned"}
    for r in rewards:
        own = {(x.sample, x.attempt): x for x in said if (x.policy, x.session, x.turn) == (r.policy, r.session, r.turn)}
        assert set(r.replies) == {x.text for x in own.values() if x.text}
        assert all(x.fault.startswith("empty") or x.text for x in own.values())
    assert any(x.fault for x in said)  # drawn once more
    assert found["reward"]["empty_replies"] == sum(2 - len(r.replies) for r in rewards)


def test_a_kill_while_policies_answer_loses_calls_in_flight_alone(
    tmp_path: Path, scripts: list[Script], scorer: Scorer
) -> None:
    plain, run = (run_dir(tmp_path / "runs" / name, scripts) for name in "ab")
    server = FaultServer(delay_s=0.05)
    with served(server) as url:
        keys = served_policies(url, max_concurrent=3) | {"form": "short"}
        assert cli(call(plain, scorer, clients=1, **keys)) == 0
        undisturbed, calls = asked(server), len(server.log)
        forget(server)
        server.hold_from = calls - 10  # however late the kill, it comes before the end
        child = subprocess.Popen(
            [sys.executable, "-m", "psychepass.cli", *call(run, scorer, clients=1, **keys)],
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
        )
        path, deadline = run / "heldout" / "replies.jsonl", time.monotonic() + 400
        while not (path.is_file() and path.read_bytes().count(b"\n") >= 5):
            assert child.poll() is None and time.monotonic() < deadline
            time.sleep(0.005)
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        server.hold_from = None
        while server.open:
            time.sleep(0.01)
        assert len(server.log) < calls
        assert cli(call(run, scorer, clients=1, **keys)) == 0
    assert 0 <= (asked(server) - undisturbed).total() <= 3 and not undisturbed - asked(server)
    assert {r.id for r in records.read(path, PromptReply)} == {
        r.id for r in records.read(plain / "heldout" / "replies.jsonl", PromptReply)
    }
    assert summary(run) | {"opened": 0} == summary(plain) | {"opened": 0}


def test_one_policy_behind_an_endpoint_and_one_of_local_weights_do_not_compare(
    tmp_path: Path, scripts: list[Script], scorer: Scorer, capsys: Any
) -> None:
    run = run_dir(tmp_path / "runs" / "a", scripts)
    one = {"aligned": served_policies("http://127.0.0.1:9/v1")["aligned"]}
    assert cli(call(run, scorer, clients=1, **one)) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "'adviser' is of kind rules, 'aligned' is of kind endpoint; two engines" in error


# --- best of n -----------------------------------------------------------------------------------------


def test_best_of_n_under_llm_judges(tmp_path: Path, scorer: Scorer, capsys: Any) -> None:
    from rollout_env.profiles import load_profiles
    from rollout_env.script import build_script

    profiles, weights = load_profiles(), tiny_model(tmp_path)
    made = [build_script(profiles[p], "short") for p in SPLITS.test[:2]]
    run = test_best_of_n.made_run(tmp_path, made, weights)
    plain = test_best_of_n.arguments(run, scorer, weights)
    assert cli(plain) == 0
    before = records.read_json(run / "best_of_n" / "summary.json")
    for path in (run / "manifests" / "best-of-n.json", run / "best_of_n" / "draws.jsonl"):
        path.unlink()
    server = FaultServer((Fault("cut-off text", 0.5, ALWAYS),))
    with served(server) as url:
        entries = judges(url)
        arguments = [*plain, f"judges={json.dumps(entries)}"]
        capsys.readouterr()
        assert cli([*arguments, "--dry-run"]) == 0
        planned = row(capsys.readouterr().out, f"{MODEL} at {url}")[0]
        assert planned == 2 * 2 * 3 * 2 and not server.log  # sizes, clients, draws, orders
        assert cli([*arguments, "budget_usd=0.01"]) == 2
        assert "matches are left to judge" in " ".join(capsys.readouterr().err.split())
        assert cli(arguments) == 0
        counted = Counter(json.dumps(b["messages"]) for b in server.bodies)
        assert set(counted.values()) == {1} and not [s for s in server.log if s.kind == "500"]
    found = records.read_json(run / "best_of_n" / "summary.json")
    failures = found["failures"]["n"]
    assert found["failures"]["judgements"] == planned and 0 < failures < planned
    for n, of_n in found["gain"].items():
        assert of_n["overall"]["judge"] == "judge-0" and of_n["shadow"] == before["gain"][n]["shadow"]
        assert of_n["reference"] == {k: before["gain"][n][k] for k in ("overall", "dimensions")}
        assert of_n["reward_score"] == before["gain"][n]["reward_score"]
    draws = records.read(run / "best_of_n" / "draws.jsonl", Draw)
    judged = sum(sum(role.startswith("judge") for role in d.winners) for d in draws)
    assert judged == planned - failures and found["llm_judges"]["name"] == "judge-0"
    assert len(read(run / "best_of_n", "battles.jsonl")) == planned - failures


def test_the_shipped_config_has_judges_and_a_client() -> None:
    config = load(HeldoutConfig, ROOT / "configs" / "heldout-llm.yaml")
    tournament = load(TournamentConfig, ROOT / "configs" / "tournament-llm.yaml")
    assert config.judges == tournament.judges and config.client and config.client.endpoint and config.budget_usd
    plain = load(HeldoutConfig, ROOT / "configs" / "heldout.yaml")
    assert (plain.judges, plain.client, plain.budget_usd, plain.allow_minors) == (None, None, None, False)
    assert config.base == plain.base and config.margin == plain.margin
    here = load(HeldoutConfig, ROOT / "configs" / "heldout-served.yaml")
    differ = {k for k, v in here.base.model_dump().items() if v != here.aligned.model_dump()[k]}
    assert here.base.endpoint and differ == {"name", "endpoint"} and here.base.prompt == plain.base.prompt

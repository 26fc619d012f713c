"""Stage `tournament` on small sessions made by hand."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from psychepass import cli, records
from psychepass.config import load
from psychepass.errors import UserError
from psychepass.schema import Battle, Dimension, Failure, JudgeIdentity, Script, Session, Verdict
from tests.conftest import ROOT
from tests.handmade import Split, session_of, short_script
from tests.judge_rig import write_run
from tournament import field as entering
from tournament import run as stage
from tournament.journal import Journal
from tournament.judge import Outcome, match, points_of, subject
from tournament.leaderboard import leaderboard
from tournament.play import in_turn
from tournament.play import play as play_rounds

STRENGTH = {"a": 1, "b": 2, "c": 3, "d": 4}


class FakeJudge:
    """The stronger name wins everything; `favours_first` breaks ties of order, `fails` names presentations."""

    def __init__(self, order_free: bool = False, favours_first: bool = False, fails: tuple[str, ...] = ()):
        self.identity = JudgeIdentity(name="fake", model="fake", rubric_version="1", order_free=order_free)
        self.favours_first = favours_first
        self.fails = fails
        self.calls: list[str] = []

    def judge(self, session_a: Session, session_b: Session, script: Script, *, round: int) -> Outcome:
        a, b = session_a.therapist.name, session_b.therapist.name
        self.calls.append(a + b)
        if a + b in self.fails:
            name = subject(session_a.id, session_b.id)
            return Failure(stage="tournament", subject=name, reason="not JSON")
        winner = Verdict(winner="A" if self.favours_first or STRENGTH[a] > STRENGTH[b] else "B")
        return Battle(
            profile_id=session_a.profile_id,
            split=session_a.split,
            round=round,
            session_a=session_a.id,
            session_b=session_b.id,
            contestant_a=a,
            contestant_b=b,
            judge=self.identity,
            verdicts=dict.fromkeys(Dimension, winner),
            overall=winner,
        )


def field(clients: int = 3, contestants: str = "abcd") -> entering.Field:
    scripts = [short_script(f"client-{c}") for c in range(clients)]
    sessions = [session_of(s, name, "train", f"{name} speaks") for s in scripts for name in contestants]
    return entering.enter(sessions, {s.id: s for s in scripts})


def play(entered: entering.Field, judge: FakeJudge, folder: Path) -> list[Outcome]:
    with Journal(folder, judge.identity) as journal:
        assert play_rounds(entered, in_turn(judge, journal), 0) == 0
        return journal.outcomes()


def two_sessions() -> tuple[Session, Session, Script]:
    entered = field()
    sessions = entered.sessions["client-0"]
    return sessions["a"], sessions["b"], entered.scripts[sessions["a"].script_id]


def test_a_match_is_judged_in_both_orders():
    a, b, script = two_sessions()
    judge = FakeJudge(favours_first=True)
    outcomes = match(judge, a, b, script, 1)
    assert judge.calls == ["ab", "ba"] and len(outcomes) == 2
    assert points_of(a.id, outcomes) == 0.5  # won once where it stood first


def test_an_order_free_judge_is_checked_and_counted_once():
    a, b, script = two_sessions()
    judge = FakeJudge(order_free=True)
    outcomes = match(judge, a, b, script, 1)
    assert judge.calls == ["ab", "ba"] and len(outcomes) == 1
    assert points_of(b.id, outcomes) == 1 and points_of(a.id, outcomes) == 0
    with pytest.raises(RuntimeError, match="otherwise in the second order on empathy"):
        match(FakeJudge(order_free=True, favours_first=True), a, b, script, 1)


def test_a_failed_order_leaves_the_other():
    a, b, script = two_sessions()
    outcomes = match(FakeJudge(fails=("ab",)), a, b, script, 1)
    assert [type(o) for o in outcomes] == [Failure, Battle] and points_of(a.id, outcomes) == 0
    assert points_of(a.id, match(FakeJudge(fails=("ab", "ba")), a, b, script, 1)) is None


def test_what_is_known_is_not_judged_again():
    a, b, script = two_sessions()
    known = {subject(a.id, b.id): match(FakeJudge(), a, b, script, 1)[0]}
    judge = FakeJudge()
    assert len(match(judge, a, b, script, 1, known)) == 2 and judge.calls == ["ba"]


def test_a_tournament_and_its_table(tmp_path):
    entered = field(clients=4)
    outcomes = play(entered, FakeJudge(), tmp_path)
    assert len(outcomes) == 2 * entered.matches() == 2 * 4 * 2 * 2  # orders, clients, rounds, matches a round
    table = leaderboard(entered, outcomes, FakeJudge().identity, seed=0)
    assert [r["contestant"] for r in table["overall"]] == ["d", "c", "b", "a"]
    assert set(table["dimensions"]) == {d.value for d in Dimension}
    assert table["n_clients"] == 4 and table["n_battles"] == 32 and table["tie_rate"] == 0
    assert table["order_consistency"] == 1 and table["graph"]["overall"] == "separable"
    assert table["failures"] == {"n": 0, "share": 0, "one_order": 0}
    assert not (tmp_path / "failures.jsonl").exists()


def test_an_odd_field_adds_no_battle_for_a_bye(tmp_path):
    outcomes = play(field(contestants="abc"), FakeJudge(order_free=True), tmp_path)
    assert len(outcomes) == 3 * 2  # clients, rounds; one match a round
    by_client = {
        c: [o for o in outcomes if isinstance(o, Battle) and o.profile_id == c] for c in ("client-0", "client-1")
    }
    for battles in by_client.values():
        met = Counter(frozenset((b.contestant_a, b.contestant_b)) for b in battles)
        assert len(met) == 2  # no rematch


def test_failures_are_counted_and_never_ties(tmp_path):
    entered = field()
    judge = FakeJudge(fails=("ab", "ba", "cd"))
    outcomes = play(entered, judge, tmp_path)
    failed = records.read(tmp_path / "failures.jsonl", Failure)
    table = leaderboard(entered, outcomes, judge.identity, seed=0)
    assert failed and table["failures"]["n"] == len(failed)
    assert table["failures"]["share"] == round(len(failed) / len(outcomes), 6)
    # of a against b both orders failed, of c against d the first: the second stands alone
    cd = {f.subject for f in failed} & {subject(*(entered.sessions[c][x].id for x in "cd")) for c in entered.sessions}
    assert table["failures"]["one_order"] == len(cd) > 0
    assert table["n_battles"] == len(outcomes) - len(failed) and table["tie_rate"] == 0
    again = FakeJudge(fails=("ab", "ba", "cd"))
    play(entered, again, tmp_path)
    assert again.calls == []


@pytest.mark.parametrize("keep", [1, 2, 7])
def test_battles_go_on_where_they_stopped(tmp_path, keep):
    """A kill in the middle of a match's two lines, with a torn last one: the same bytes in the end."""
    entered, path = field(), tmp_path / "battles.jsonl"
    play(entered, FakeJudge(), tmp_path)
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:keep]) + lines[keep][:50])
    judge = FakeJudge()
    play(entered, judge, tmp_path)
    assert path.read_bytes() == whole and len(judge.calls) == len(lines) - keep


def test_two_judges_in_one_ranking_are_refused(tmp_path):
    play(field(), FakeJudge(), tmp_path)
    with pytest.raises(UserError, match="one ranking has one judge"):
        play(field(), FakeJudge(order_free=True), tmp_path)


def test_a_missing_session_is_named():
    scripts = [short_script(f"client-{c}") for c in range(2)]
    sessions = [session_of(s, name, "test", "hello") for s in scripts for name in "abc"][:-1]
    with pytest.raises(UserError, match=r"1 sessions are missing .*'c' with client client-1"):
        entering.enter(sessions, {s.id: s for s in scripts})


def test_a_contestant_sits_out_where_its_session_failed(tmp_path):
    scripts = [short_script(f"client-{c}") for c in range(3)]
    sessions = [session_of(s, name, "test", "hello") for s in scripts for name in "abcd"][:-1]
    entered = entering.enter(sessions, {s.id: s for s in scripts}, lost=1)
    outcomes = play(entered, FakeJudge(order_free=True), tmp_path)
    met = Counter(name for o in outcomes if isinstance(o, Battle) and o.profile_id == "client-2"
                  for name in (o.contestant_a, o.contestant_b))  # fmt: skip
    assert set(met) == {"a", "b", "c"} and len(outcomes) == entered.matches() == 2 * 4 + 2
    table = leaderboard(entered, outcomes, FakeJudge(order_free=True).identity, seed=0)
    assert table["sat_out"] == 1 and {r["contestant"] for r in table["overall"]} == set("abcd")
    failure = Failure(stage="simulate", subject="one", reason="empty reply, twice", detail="")
    records.write(tmp_path / "session_failures.jsonl", [failure])
    assert entering.failed_sessions(tmp_path) == 1 and entering.failed_sessions(tmp_path / "elsewhere") == 0


def test_bad_fields_are_refused():
    script, other = short_script("client-0"), short_script("client-1")
    scripts = {script.id: script}
    twice = [session_of(script, "a", "train", "x", seed=s) for s in (1, 2)]
    with pytest.raises(UserError, match="client-0 has two sessions of contestant 'a'"):
        entering.enter(twice, scripts)
    with pytest.raises(UserError, match="1 train and test clients and 2 contestants"):
        entering.enter([session_of(script, n, "train", "x") for n in "ab"], scripts)
    with pytest.raises(UserError, match=r"not in scripts.jsonl"):
        entering.enter([session_of(other, n, "train", "x") for n in "ab"], scripts)


def test_dev_pairs_are_complete_or_refused():
    scripts = [short_script(f"dev-{c}") for c in range(2)]
    sessions = [session_of(s, n, "dev", "hello", seed=i) for s in scripts for i, n in enumerate(["base", "again"])]
    found = entering.dev_pairs(sessions, "base", "again")
    assert [(a.profile_id, a.therapist.name, b.therapist.name) for a, b in found] == [
        ("dev-0", "base", "again"),
        ("dev-1", "base", "again"),
    ]
    with pytest.raises(UserError, match="dev client dev-1 has no session of 'again'"):
        entering.dev_pairs(sessions[:-1], "base", "again")
    assert [a.profile_id for a, _ in entering.dev_pairs(sessions[:-1], "base", "again", lost=1)] == ["dev-0"]
    with pytest.raises(UserError, match=r"no dev client; .* set on dev clients"):
        entering.dev_pairs([], "base", "again")
    with pytest.raises(UserError, match=r"no dev client \(2 sessions failed: session_failures.jsonl\)"):
        entering.dev_pairs([], "base", "again", lost=2)


def test_a_session_still_to_be_held_does_not_pass_for_a_failed_one(tmp_path, capsys):
    config = write_run(tmp_path, None, clients=2, contestants=3)
    run = tmp_path / "run"
    sessions = records.read(run / "sessions.jsonl", Session)
    records.write(run / "sessions.jsonl", sessions[1:])  # of a train client; a dev client's has failed
    records.write(run / "session_failures.jsonl", [Failure(stage="simulate", subject="one", reason="x", detail="")])
    records.write_json(run / "manifests" / "simulate.json", {"ended": None})
    assert cli.main(["tournament", str(config)]) == 2
    assert "simulate.json: stage simulate has not ended" in capsys.readouterr().err
    assert not (run / "judge.json").exists() and not (run / "manifests" / "tournament.json").exists()


@pytest.mark.parametrize("path", ["configs/tournament.yaml", "configs/quickstart/tournament.yaml"])
def test_shipped_configs_load(path):
    assert load(stage.TournamentConfig, ROOT / path).base


# --- the stage with the reference judge ----------------------------------------------------------

REPLIES = {
    "reflector": "It sounds lonely to come back to that quiet flat. What would you want an evening to be like?",
    "adviser": "You should simply join a club and exercise more, that always helps people.",
    "echo": "I see.",
    "echo-again": "I see, go on.",
}
# kills its own process at the n-th judgement, as a SIGKILL from outside would
KILLER = """
import os, signal, sys
from tournament.reference_judge import ReferenceJudge
from tournament import run
judge, calls = ReferenceJudge.judge, 0
def counted(*args, **kwargs):
    global calls
    calls += 1
    if calls == int(sys.argv[1]):
        os.kill(os.getpid(), signal.SIGKILL)
    return judge(*args, **kwargs)
ReferenceJudge.judge = counted
run.main(sys.argv[2], [])
"""


def made_run(folder: Path) -> Path:
    """A run directory after stage simulate; returns the tournament's config file."""
    scripts, sessions = [], []
    clients_of: dict[Split, int] = {"train": 3, "test": 2, "dev": 3}
    for split, clients in clients_of.items():
        names = list(REPLIES) if split != "dev" else ["echo", "echo-again"]
        for c in range(clients):
            script = short_script(f"{split}-{c}")
            scripts.append(script)
            sessions += [session_of(script, name, split, REPLIES[name]) for name in names]
    records.write(folder / "runs" / "scripts.jsonl", scripts)
    records.write(folder / "runs" / "sessions.jsonl", sessions)
    config = folder / "tournament.yaml"
    config.write_text(f"run: {folder / 'runs'}\nbase: echo\nbase_repeat: echo-again\n", encoding="utf-8")
    return config


MADE = ("battles.jsonl", "judge.json", "ratings.json")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    config = made_run(tmp_path_factory.mktemp("whole"))
    assert cli.main(["tournament", str(config)]) == 0
    return config.parent / "runs"


def test_the_stage_writes_its_files(finished):
    table, judges = records.read_json(finished / "ratings.json"), records.read_json(finished / "judge.json")
    battles = records.read(finished / "battles.jsonl", Battle)
    assert len(battles) == table["n_battles"] == 5 * 2 * 2  # clients, rounds, matches
    assert {b.split for b in battles} == {"train", "test"}
    assert {b.judge.rubric_version for b in battles} == {table["rubric_version"]} == {judges["judge"]["rubric_version"]}
    assert table["order_consistency"] == "by construction" and table["interval"]["method"] == "jackknife-t"
    assert {r["contestant"] for r in table["overall"]} == set(REPLIES)
    assert judges["judge"]["rubric_version"] != judges["shadow"]["rubric_version"]
    assert all(judges[name]["tau"][d.value] >= 0.05 for name, d in itertools.product(("judge", "shadow"), Dimension))


def test_base_and_its_repeat_are_two_contestants_of_one_model(tmp_path, capsys):
    config = made_run(tmp_path)
    assert cli.main(["tournament", str(config), "base_repeat=echo"]) == 2
    assert "base and base_repeat are both 'echo'" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "judge.json").exists()
    assert cli.main(["tournament", str(config)]) == 0
    assert "differ in" not in capsys.readouterr().err
    # another prompt is more than noise: said, and judged all the same
    other = made_run(tmp_path / "other")
    path = tmp_path / "other" / "runs" / "sessions.jsonl"
    sessions = [
        s.model_copy(update={"therapist": s.therapist.model_copy(update={"prompt_hash": "warm"})})
        if s.therapist.name == "echo-again"
        else s
        for s in records.read(path, Session)
    ]
    records.write(path, sessions)
    assert cli.main(["tournament", str(other)]) == 0
    assert "base 'echo' and base_repeat 'echo-again' differ in prompt_hash; expected" in capsys.readouterr().err


def test_a_second_call_does_nothing(finished, capsys):
    before = {name: (finished / name).stat().st_mtime_ns for name in MADE}
    assert cli.main(["tournament", str(finished.parent / "tournament.yaml")]) == 0
    assert "done before" in capsys.readouterr().err
    assert before == {name: (finished / name).stat().st_mtime_ns for name in MADE}


def test_killed_and_called_again_gives_the_same_bytes(finished, tmp_path):
    config = made_run(tmp_path)
    killed = subprocess.run(
        [sys.executable, "-c", KILLER, "12", str(config)], cwd=ROOT, capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    path = tmp_path / "runs" / "battles.jsonl"
    held = path.read_bytes()
    assert held and (finished / "battles.jsonl").read_bytes().startswith(held)
    assert not (tmp_path / "runs" / "ratings.json").exists()
    path.write_bytes(held + b'{"half a li')
    assert cli.main(["tournament", str(config)]) == 0
    for name in MADE:
        assert (tmp_path / "runs" / name).read_bytes() == (finished / name).read_bytes(), name


def test_errors_exit_with_two_and_leave_the_run_as_it_was(tmp_path, capsys):
    config = made_run(tmp_path)
    path = tmp_path / "runs" / "sessions.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[1:]))
    assert cli.main(["tournament", str(config)]) == 2
    assert "sessions are missing" in capsys.readouterr().err
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["scripts.jsonl", "sessions.jsonl"]
    path.write_bytes(b"".join(lines))  # simulate has ended since: the stage takes it
    assert cli.main(["tournament", str(config)]) == 0
    assert cli.main(["tournament", str(config), "bases=echo"]) == 2
    assert "unknown key 'bases'" in capsys.readouterr().err


def test_battles_of_another_prompt_exit_with_two_before_any_judgement(finished, tmp_path, capsys):
    config = made_run(tmp_path)
    battle = records.read(finished / "battles.jsonl", Battle)[0]
    other = battle.judge.model_copy(update={"prompt_hash": "other"})
    path = tmp_path / "runs" / "battles.jsonl"
    records.write(path, [battle.model_copy(update={"judge": other})])
    held = path.read_bytes()
    assert cli.main(["tournament", str(config)]) == 2
    said = f"differ: prompt_hash '{battle.judge.prompt_hash}' and 'other'; one ranking has one judge"
    assert said in capsys.readouterr().err
    assert path.read_bytes() == held


@pytest.mark.parametrize("fault", ["one contestant", "one name"])
def test_fields_that_cannot_be_rated_exit_with_two(tmp_path, capsys, fault):
    config = made_run(tmp_path)
    path = tmp_path / "runs" / "sessions.jsonl"
    sessions = records.read(path, Session)
    if fault == "one contestant":
        sessions = [s for s in sessions if s.split == "dev" or s.therapist.name == "echo"]
    else:
        first = next(i for i, s in enumerate(sessions) if s.split == "train" and s.therapist.name == "echo")
        other = sessions[first].therapist.model_copy(update={"prompt_hash": "another prompt"})
        sessions[first] = sessions[first].model_copy(update={"therapist": other})
    records.write(path, sessions)
    assert cli.main(["tournament", str(config)]) == 2
    said = {
        "one contestant": "5 train and test clients and 1 contestants (echo)",
        "one name": "two contestants have the name 'echo', in sessions",
    }
    assert said[fault] in capsys.readouterr().err
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["scripts.jsonl", "sessions.jsonl"]


def test_davidsons_ties_are_a_choice(finished, tmp_path):
    config = made_run(tmp_path)
    assert cli.main(["tournament", str(config), "ties=davidson"]) == 0
    half, davidson = (records.read_json(p / "ratings.json") for p in (finished, tmp_path / "runs"))
    assert half["ties"] == {"model": "half", "nu": None} and davidson["ties"]["model"] == "davidson"
    assert set(davidson["ties"]["nu"]) == {"overall", *Dimension} and min(davidson["ties"]["nu"].values()) > 0
    assert half["dimensions"] != davidson["dimensions"] and half["head_to_head"] == davidson["head_to_head"]
    assert set(half["groups"]) == {"overall", *Dimension}
    assert sum(row["n"] for row in half["predicted"]) == half["n_battles"]


def test_a_judge_does_not_change_within_a_run(finished, tmp_path):
    config = made_run(tmp_path)
    judges = records.read_json(finished / "judge.json")
    judges["judge"]["rubric_version"] = "older"
    records.write_json(tmp_path / "runs" / "judge.json", judges)
    with pytest.raises(UserError, match=r"this run's judge is .* older"):
        stage.main(str(config), [])

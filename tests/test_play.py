"""The rounds of a tournament: who waits for whom, and that nothing else depends on it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tqdm import tqdm

from psychepass import llm
from psychepass.cli import main as cli
from psychepass.schema import Battle, Dimension, JudgeIdentity, Script, Session, Verdict, content_hash
from tests.conftest import ROOT
from tests.fault_server import FaultServer, digest, served
from tests.handmade import session_of, short_script
from tests.judge_rig import judges, read, write_run
from tournament import field as entering
from tournament.journal import Journal
from tournament.judge import Outcome, match
from tournament.leaderboard import leaderboard
from tournament.pairing import PairingName
from tournament.play import Hold, Line, in_turn, play

CLIENTS, CONTESTANTS, ROUNDS = 5, 4, 3
OF_CLIENT = ROUNDS * 2 * 2  # presentations: two matches a round, two orders
SLOW = "train-3"
LONGEST_S = 60.0  # only what waits for a wave of other clients' matches, and so for ever, takes so long


class DrawnJudge:
    """Verdicts drawn by a hash of the two sessions."""

    identity = JudgeIdentity(name="drawn", model="drawn", rubric_version="1")

    def judge(self, session_a: Session, session_b: Session, script: Script, *, round: int) -> Outcome:
        drawn = Verdict(winner=("A", "B", "tie")[int(content_hash([session_a.id, session_b.id]), 16) % 3])
        return Battle(
            profile_id=session_a.profile_id,
            split=session_a.split,
            round=round,
            session_a=session_a.id,
            session_b=session_b.id,
            contestant_a=session_a.therapist.name,
            contestant_b=session_b.therapist.name,
            judge=self.identity,
            verdicts=dict.fromkeys(Dimension, drawn),
            overall=drawn,
        )


def line_after_line(judge: DrawnJudge, journal: Journal) -> Hold:
    """As far from `in_turn` as can be: the last client first, with all its rounds, and each round from its end."""

    def hold(lines: Sequence[Line], bar: tqdm) -> None:
        for line in reversed(lines):
            for wave in line:
                for met in reversed(wave.matches):
                    outcomes = match(judge, met.a, met.b, met.script, met.round, journal.known)
                    journal.append(reversed(outcomes))
                    wave.held.insert(0, outcomes)

    return hold


def field() -> entering.Field:
    """Six clients with five contestants, of whom one sits out with the second client and two with the third."""
    scripts = [short_script(f"client-{c}") for c in range(6)]
    absent = {("client-1", "e"), ("client-2", "a"), ("client-2", "b")}
    met = [(s, name) for s in scripts for name in "abcde" if (s.profile_id, name) not in absent]
    sessions = [session_of(s, name, "train", f"{name} speaks") for s, name in met]
    return entering.enter(sessions, {s.id: s for s in scripts}, lost=len(absent))


@pytest.mark.parametrize("name", ["swiss", "round_robin"])
def test_battles_and_ratings_do_not_depend_on_who_is_judged_first(tmp_path: Path, name: PairingName) -> None:
    entered, judge, found = field(), DrawnJudge(), []
    for hold in (in_turn, line_after_line):
        with Journal(tmp_path / hold.__name__, judge.identity) as journal:
            assert play(entered, hold(judge, journal), 0, name) == 0
            found.append((journal.outcomes(), leaderboard(entered, journal.outcomes(), judge.identity, seed=0)))
    (battles, table), (others, other_table) = found
    assert len(battles) == 2 * entered.matches(name)
    assert {b.id for b in battles} == {b.id for b in others} and [b.id for b in battles] != [b.id for b in others]
    assert table == other_table


@pytest.mark.parametrize("name", ["swiss", "round_robin", "adaptive"])
def test_in_turn_goes_round_by_round_over_all_clients(tmp_path: Path, name: PairingName) -> None:
    with Journal(tmp_path, DrawnJudge.identity) as journal:
        assert play(field(), in_turn(DrawnJudge(), journal), 0, name) == 0
    places = [(b.round, b.profile_id) for b in read(tmp_path, "battles.jsonl")]
    assert places == sorted(places) and len(set(places)) > 12


# --- over endpoints ------------------------------------------------------------------------------


class SlowServer(FaultServer):
    """Answers the first prompt of client SLOW once so many prompts of the others are answered, if they ever are."""

    def __init__(self, wait_for: int):
        super().__init__()
        self.wait_for, self.others, self.enough = wait_for, 0, asyncio.Event()
        self.of_slow: list[str] = []  # its prompts, in the order in which they came
        self.asked_of_slow: int | None = None  # how many had come when the first was answered
        self.in_vain: str | None = None

    async def _complete(self, body: dict[str, Any], send: Any) -> None:
        if f"({SLOW})" not in body["messages"][0]["content"]:
            await super()._complete(body, send)
            self.others += 1
            if self.others == self.wait_for:
                self.enough.set()
            return
        self.of_slow.append(digest(body["messages"]))
        if len(self.of_slow) == 1:
            self.open += 1
            try:
                await asyncio.wait_for(self.enough.wait(), LONGEST_S)
            except TimeoutError:
                self.in_vain = f"while one hung, {self.others} of {self.wait_for} prompts of the others were answered"
            self.open -= 1
            self.asked_of_slow = len(self.of_slow)
        await super()._complete(body, send)


def test_a_judgement_that_hangs_holds_up_its_own_client_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every other client is judged to its last round before the first judgement of one has come, under one limit."""
    monkeypatch.chdir(ROOT)
    server = SlowServer((CLIENTS - 1) * OF_CLIENT)
    with served(server) as url:
        entries = [judges(url, timeout_s=2 * LONGEST_S, max_concurrent=n) for n in (4, 1)]
        slow, plain = (write_run(tmp_path / str(i), e, CLIENTS, CONTESTANTS, rounds=ROUNDS)
                       for i, e in enumerate(entries))  # fmt: skip
        assert cli(["tournament", str(slow)]) == 0
        assert not server.in_vain, server.in_vain
        assert server.asked_of_slow == 4  # the first round's: its own second round waited
        assert len(server.log) == CLIENTS * OF_CLIENT and server.most_open <= 4
        assert f"{CLIENTS * ROUNDS * 2}/{CLIENTS * ROUNDS * 2} " in capsys.readouterr().err
        server.wait_for, server.of_slow = 0, ["nothing waits"]
        assert cli(["tournament", str(plain)]) == 0
    runs = [config.parent / "run" for config in (slow, plain)]
    held, others = ([b.id for b in read(run, "battles.jsonl")] for run in runs)
    assert set(held) == set(others) and held != others
    assert len({(run / "ratings.json").read_bytes() for run in runs}) == 1


class BrokenServer(FaultServer):
    """Answers one prompt of client SLOW, the first that comes, with 500 for as long as it is `broken`."""

    broken, prompt = True, ""

    def _kind(self, body: dict[str, Any], key: str) -> str:
        if not self.prompt and f"({SLOW})" in body["messages"][0]["content"]:
            self.prompt = key
        return "500" if self.broken and key == self.prompt else super()._kind(body, key)


def test_a_match_that_cannot_be_judged_keeps_its_own_client_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(llm, "TRIES", 2)
    monkeypatch.setattr(llm, "FIRST_PAUSE_S", 0.02)
    server, matches = BrokenServer(), CLIENTS * ROUNDS * 2
    with served(server) as url:
        config = write_run(tmp_path, judges(url, timeout_s=60.0), CLIENTS, CONTESTANTS, rounds=ROUNDS)
        assert cli(["tournament", str(config)]) == 75
        error = capsys.readouterr().err
        assert f"5 of {matches} matches are left to judge" in error and f"{matches - 5}/{matches} " in error
        run = tmp_path / "run"
        judged = Counter(b.profile_id for b in read(run, "battles.jsonl"))
        assert judged.pop(SLOW) == 3 and set(judged.values()) == {OF_CLIENT} and len(judged) == CLIENTS - 1
        server.broken = False
        assert cli(["tournament", str(config)]) == 0
        assert f"{matches}/{matches} " in capsys.readouterr().err
    assert len(read(run, "battles.jsonl")) == CLIENTS * OF_CLIENT
    assert set(server.seen.values()) == {1, 3} and [k for k, n in server.seen.items() if n == 3] == [server.prompt]

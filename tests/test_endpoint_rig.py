"""What the tests of endpoints measure with: where an answer whose record a kill took counts; late and unsent calls."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from psychepass.ledger import Call
from tests.endpoint_rig import mark, told_apart_by_time_alone, written


def append(path: Path, *rows: dict[str, Any]) -> None:
    with path.open("a") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows)


def call(about: str, outcome: str = "ok") -> dict[str, Any]:
    return {"about": about, "outcome": outcome}


def test_an_answer_whose_record_the_next_run_writes_was_unwritten_in_its_own(tmp_path: Path) -> None:
    ledger, turns = tmp_path / "ledger_simulate.jsonl", tmp_path / "turns.jsonl"
    begun = mark(tmp_path, "simulate")
    append(ledger, call("session a turn 1", "status 500"), call("session a turn 1"), call("session b turn 1", "empty"))
    assert written(tmp_path, "simulate", begun) == 1  # the kill took the turn of a, and came before b's second try
    again = mark(tmp_path, "simulate")
    append(ledger, call("session a turn 1"), call("session b turn 1", "empty"), call("session b turn 1", "empty"))
    append(turns, {"session_key": "a", "turn": {"turn": 1}})
    append(tmp_path / "session_failures.jsonl", {"subject": "b"})
    assert written(tmp_path, "simulate", again) == 3


def test_lines_and_judgements_have_files_of_their_own(tmp_path: Path) -> None:
    for stage, replies, about in (
        ("simulate", "client_lines.jsonl", "session a turn 1 client"),
        ("tournament", "judge_replies.jsonl", "battle"),
    ):
        for n in range(3):  # each run: two answers, of which the kill took the second's record
            since = mark(tmp_path, stage)
            append(tmp_path / f"ledger_{stage}.jsonl", call(about), call(about), call(about, "status 429"))
            append(tmp_path / replies, {"n": n})
            assert written(tmp_path, stage, since) == 2


def ended(outcome: str, seconds: float = 0.1) -> Call:
    return Call(time="", about="", base_url="", model="", attempt=1, outcome=outcome, seconds=seconds, price=(0.0, 0.0))


def test_only_calls_that_were_given_up_may_be_counted_otherwise() -> None:
    by_server, hung = Counter({"ok": 2, "time-out": 1}), ended("time-out", 4.0)
    for calls, same in (
        ([ended("ok"), ended("ok"), hung], True),
        ([ended("ok"), hung, hung], True),  # the second answer was late
        ([ended("ok"), ended("ok"), hung, hung], True),  # one was never sent
        ([ended("ok"), ended("ok"), hung, ended("time-out", 3.9)], False),
        ([ended("ok"), hung], False),
        ([ended("ok"), ended("ok"), ended("empty"), hung], False),
    ):
        assert told_apart_by_time_alone(by_server, calls, timeout_s=4.0) == same

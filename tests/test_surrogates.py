"""Half of a character (a lone surrogate): JSON can hold it, UTF-8 cannot. A reply that has one is kept, readable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from psychepass import llm, records
from psychepass.cli import main as cli
from psychepass.completion import parse_body, whole
from psychepass.endpoint import text_tokens
from psychepass.ledger import read_calls
from psychepass.schema import Battle, Session, content_hash
from rollout_env.script_source import bank_named
from rollout_env.script_writer import read_script
from tests import chinese_client
from tests.endpoint_rig import contestants, write_config
from tests.fault_server import FaultServer, completion, judgement, reply, served
from tests.judge_rig import judges, read, write_run
from tests.played_client import client, obedient

HALF = "half \ud800 of a sign"
KEPT = "half \ufffd of a sign"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(llm, "LONGEST_PAUSE_S", 0.02)


def test_estimates_and_hashes_take_any_text() -> None:
    assert text_tokens("\ud800abc") == 2 and text_tokens("😀") == text_tokens("abcd") == 1
    assert content_hash("\ud800") != content_hash("\ud801")


def test_only_half_characters_are_replaced() -> None:
    assert whole(HALF) == KEPT and whole("\udc00\ud800") == "\ufffd\ufffd"
    for text in (
        "",
        "plain",
        "你好 😀",
        "\ufeffmark",
        "\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16"),
    ):
        assert whole(text) == text
    body = parse_body(json.dumps({HALF: [HALF, 1, None, {"x": HALF}], "n": 0.5}).encode())
    assert body == {KEPT: [KEPT, 1, None, {"x": KEPT}], "n": 0.5}
    assert parse_body(b'{"raw": "\xed\xa0\x80"}') == {"raw": "\ufffd"}
    assert parse_body(b'{"a":' * 100_000) is None


def spoken(kind: str) -> Any:
    """A server's `say`: replies of therapists, of clients that a model plays too, or none."""

    def say(body: dict[str, Any]) -> str:
        return f"{HALF} {reply(body)}" if kind == "therapist" else obedient(body)

    return say


def test_therapists_that_say_half_a_character_are_heard_and_kept(tmp_path: Path) -> None:
    server = FaultServer(say=spoken("therapist"))
    with served(server) as url:
        config = write_config(tmp_path, contestants(url, 2), 2)
        assert cli(["simulate", str(config)]) == 0
        asked = len(server.log)
        assert cli(["simulate", str(config)]) == 0 and len(server.log) == asked
    run = tmp_path / "run"
    sessions = records.read(run / "sessions.jsonl", Session)
    replies = [t.therapist for s in sessions for t in s.turns]
    assert len(sessions) == 4 and len(replies) == asked and all(r.startswith(KEPT) for r in replies)
    assert not (run / "session_failures.jsonl").read_text() if (run / "session_failures.jsonl").exists() else True
    assert {c.outcome for c in read_calls(run / "ledger_simulate.jsonl")} == {"ok"}
    assert len(list(read_calls(run / "ledger_simulate.jsonl"))) == asked
    assert all(KEPT in m["content"] for b in server.bodies for m in b["messages"] if m["role"] == "assistant")


def test_a_client_that_says_half_a_character_is_heard_and_kept(tmp_path: Path) -> None:
    def say(body: dict[str, Any]) -> str:
        said = obedient(body)
        return f"{said} \ud800" if body.get("temperature") == 0.25 else said

    with served(FaultServer(say=say)) as url:
        config = write_config(tmp_path, contestants(url, 1), 1, client=client(url))
        assert cli(["simulate", str(config)]) == 0
    (session,) = records.read(tmp_path / "run" / "sessions.jsonl", Session)
    assert all(t.client.endswith("\ufffd") for t in session.turns)


@pytest.mark.parametrize("where", ["in the reply", "in the reply's own JSON"])
def test_judges(tmp_path: Path, where: str) -> None:
    """A reason of a reply is readable; half a character that a judge itself escapes is no text, and told so."""
    text = HALF if where == "in the reply" else json.dumps(HALF)[1:-1]

    def say(body: dict[str, Any]) -> str:
        return judgement("0123456789abcdef").replace("because 012345", text)

    with served(FaultServer(say=say)) as url:
        code = cli(["tournament", str(write_run(tmp_path, judges(url), 2, 2))])
    run = tmp_path / "run"
    battles: list[Battle] = read(run, "battles.jsonl")
    failures = read(run, "failures.jsonl")
    assert len(battles) + len(failures) == 4
    if where == "in the reply":
        assert code == 0 and not failures
        assert {b.overall.reason for b in battles} == {KEPT}
    else:
        assert not battles and all("half of a character" in f.detail for f in failures)
        assert {r.attempt for r in read(run, "judge_replies.jsonl")} == {0, 1}


def test_a_script_with_half_a_character_can_be_written() -> None:
    tree = chinese_client.lines()
    tree["phases"][0]["lines"][1]["say"] = HALF
    script, faults = read_script(json.dumps(tree), chinese_client.PROFILE, bank_named("common"))
    assert script is not None and script.turns[1].client.trigger == KEPT and not faults
    assert json.loads(records.dumps(script))["id"] == script.id


def test_an_error_that_has_half_a_character_is_told(tmp_path: Path) -> None:
    body = parse_body(json.dumps({"error": {"message": HALF}} | completion({"messages": []}, HALF, "x")).encode())
    assert body is not None and body["error"]["message"] == KEPT and body["model"] == KEPT

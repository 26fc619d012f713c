"""A real endpoint: `transformers serve` with SmolLM2 as contestants of a tournament and as the client, over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from psychepass import records
from psychepass.cli import main as cli
from psychepass.config import load
from psychepass.ledger import read_calls
from psychepass.schema import Battle, ClientLine, Session
from psychepass.splits import Splits
from tests.conftest import ROOT
from tests.endpoint_rig import contestants, write_config
from tests.played_client import client
from tests.serve_rig import smollm2_served

pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    with smollm2_served(tmp_path_factory.mktemp("serve") / "log") as served:
        yield served


def with_a_dev_client(splits: Path) -> None:
    shipped = load(Splits, ROOT / "configs" / "splits.yaml")
    splits.write_text(yaml.safe_dump(yaml.safe_load(splits.read_text()) | {"dev": [shipped.dev[0]]}))


def test_smollm2_behind_transformers_serve_plays_a_tournament(
    tmp_path: Path, smollm2: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    url, model = smollm2
    change = {"model": model, "unlisted": True, "max_concurrent": 2, "timeout_s": 300.0}
    therapists = [
        t | {"sampling": {"temperature": temperature, "max_tokens": 12}}
        for t, temperature in zip(contestants(url, 2, **change), (0.0, 0.9), strict=True)
    ]
    config = write_config(tmp_path, therapists, clients=2)
    with_a_dev_client(tmp_path / "splits.yaml")
    assert cli(["simulate", str(config)]) == 0
    run = tmp_path / "run"
    sessions = records.read(run / "sessions.jsonl", Session)
    calls = list(read_calls(run / "ledger_simulate.jsonl"))
    assert len(sessions) == 6 and {len(s.turns) for s in sessions} == {12}
    assert len({tuple(t.therapist for t in s.turns) for s in sessions}) == 6
    assert all(t.therapist.strip() and len(t.therapist.split()) <= 12 for s in sessions for t in s.turns)
    answered = [c for c in calls if c.outcome == "ok"]
    assert len(answered) == 6 * 12 and all(c.counted and 0 < c.completion_tokens <= 12 for c in answered)
    # the server counts the prompt's tokens, and each turn of a session has more of them
    longest, shortest = (f(c.prompt_tokens for c in answered) for f in (max, min))
    assert longest > 2 * shortest > 0
    names = [t["name"] for t in therapists]
    of_judge = [f"run={run}", f"base={names[0]}", f"base_repeat={names[1]}"]
    assert cli(["tournament", str(ROOT / "configs" / "tournament.yaml"), *of_judge]) == 0
    board = records.read_json(run / "ratings.json")
    assert board["n_clients"] == 2 and sorted(r["contestant"] for r in board["overall"]) == names
    assert {tuple(sorted((b.contestant_a, b.contestant_b))) for b in records.read(run / "battles.jsonl", Battle)} == {
        tuple(names)
    }
    # a model that the server does not hold
    wrong = [contestants(url, 1, **change | {"model": "no-such-model"})[0]]
    capsys.readouterr()
    assert cli(["simulate", str(write_config(tmp_path / "wrong", wrong, clients=1))]) == 2
    assert "refuses the call (status 400): Server is pinned to" in capsys.readouterr().err


def test_smollm2_as_the_client_too_is_no_client_which_is_counted_and_not_fatal(
    tmp_path: Path, smollm2: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    url, model = smollm2
    change = {"model": model, "unlisted": True, "max_concurrent": 2, "timeout_s": 300.0}
    therapists = [contestants(url, 1, **change)[0] | {"sampling": {"temperature": 0.9, "max_tokens": 8}}]
    played = client(url, **change) | {"sampling": {"temperature": 0.7, "max_tokens": 12}}
    assert cli(["simulate", str(write_config(tmp_path, therapists, clients=1, client=played))]) == 0
    run = tmp_path / "run"
    sessions, lines = (
        records.read(run / "sessions.jsonl", Session),
        records.read(run / "client_lines.jsonl", ClientLine),
    )
    assert len(sessions) == 1 and sessions[0].client.kind == "endpoint"
    said = {(d.session_key, d.turn, d.text) for d in lines}
    assert all((s.key, t.turn, t.client) in said for s in sessions for t in s.turns)
    off = sum(d.attempt == 0 and bool(d.violations) for d in lines)
    assert len(lines) == 12 + off and off > 6 and sum(sessions[0].violations.values()) > 6
    assert "LLM client: 12 lines; retried " in capsys.readouterr().err
    calls = [c for c in read_calls(run / "ledger_simulate.jsonl") if c.outcome == "ok"]
    assert len(calls) == len(lines) + 12

"""An alias whose model changes during a run is noticed, in stages simulate and tournament."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from psychepass import llm, records
from psychepass.cli import main as cli
from psychepass.served import served_models, several_served
from tests import fault_server
from tests.endpoint_rig import ROOT, contestants, write_config
from tests.fault_server import MODEL, FaultServer, served
from tests.judge_rig import judges, write_run


@pytest.fixture(autouse=True)
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(llm, "FIRST_PAUSE_S", 0.02)


def alias(monkeypatch: pytest.MonkeyPatch, changes_after: int) -> None:
    """The server names the model behind the name that it is asked for; after so many answers it is another."""
    answered, plain = [0], fault_server.completion

    def named(body: dict[str, Any], model: str, text: str) -> dict[str, Any]:
        answered[0] += 1
        return plain(body, f"{model}-{'old' if answered[0] <= changes_after else 'new'}", text)

    monkeypatch.setattr(fault_server, "completion", named)


@pytest.mark.parametrize("changes", [True, False])
def test_a_judge_that_changes_behind_its_name_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], changes: bool
) -> None:
    alias(monkeypatch, 5 if changes else 1000)
    with served(FaultServer()) as url:
        assert cli(["tournament", str(write_run(tmp_path, judges(url), 2, 4))]) == 0
    models = [f"{MODEL}-new", f"{MODEL}-old"] if changes else [f"{MODEL}-old"]
    assert records.read_json(tmp_path / "run" / "ratings.json")["served_models"] == {f"{MODEL} at {url}": models}
    assert capsys.readouterr().err.count(f"was served by {MODEL}-new, {MODEL}-old") == changes


def test_a_therapist_that_changes_behind_its_name_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    alias(monkeypatch, 5)
    with served(FaultServer()) as url:
        assert cli(["simulate", str(write_config(tmp_path, contestants(url, 1), clients=1))]) == 0
    notes = records.read_json(tmp_path / "run" / "manifests" / "simulate.json")["notes"]
    assert notes["served_models"] == {f"{MODEL} at {url}": [f"{MODEL}-new", f"{MODEL}-old"]}
    assert capsys.readouterr().err.count(f"{MODEL} at {url} was served by {MODEL}-new, {MODEL}-old") == 1


def test_without_calls_there_is_nothing_to_tell(tmp_path: Path) -> None:
    assert served_models(tmp_path / "no.jsonl") == {} and several_served({"m at u": ["m-1"]}) == ""

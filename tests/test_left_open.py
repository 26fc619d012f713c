"""What is left for the next run: how it is counted and told, and with which exit status the stages end."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from psychepass.cli import main as cli
from psychepass.endpoint import Endpoint
from psychepass.errors import Unfinished, UserError
from psychepass.ledger import read_calls
from psychepass.left_open import LeftOpen
from psychepass.llm import BudgetSpent, Refused, Transport
from tests.endpoint_rig import ROOT, contestants, write_config
from tests.fault_server import FaultServer, served

ENDPOINT = Endpoint.model_validate({"base_url": "http://h/v1", "model": "m", "price": {"input": 1, "output": 1}})
DOWN, REFUSED, SPENT = Transport("status 500", "busy"), Refused("m refuses the key"), BudgetSpent("budget_usd is 1")


@pytest.mark.parametrize(
    ("errors", "kind"),
    [
        ([DOWN], Unfinished),
        ([DOWN, REFUSED], Unfinished),  # calling again gets on with what the one left
        ([REFUSED], UserError),
        ([SPENT], UserError),
        ([DOWN, SPENT], UserError),  # calling again gets on with nothing
    ],
)
def test_who_must_act_decides_the_error(errors: list[Any], kind: type) -> None:
    left = LeftOpen()
    for error in errors:
        left.add(error, ENDPOINT)
    assert type(left.error("1 of 2 was left", "the rest")) is kind


def test_errors_of_one_kind_count_together_with_the_details_of_the_first() -> None:
    left = LeftOpen()
    for error in (Transport("status 500", "one"), Transport("status 500", "two"), Transport("time-out")):
        left.add(error, ENDPOINT)
    left.add(REFUSED, ENDPOINT, 4)
    assert left.total() == 7
    assert str(left.error("7 of 9 calls were left open", "what was said")) == (
        "7 of 9 calls were left open (4: m refuses the key; 2: m at http://h/v1: status 500: one; "
        "1: m at http://h/v1: time-out); what was said is kept, call the stage again to go on"
    )


def test_a_run_goes_on_where_its_server_comes_back_at_another_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, contestants("http://$MADE_UP_AT/v1", 2), clients=1)
    assert cli(["simulate", str(config)]) == 2
    assert (
        "made-up-1 at http://$MADE_UP_AT/v1: the environment variable MADE_UP_AT is not set" in capsys.readouterr().err
    )
    monkeypatch.setenv("MADE_UP_AT", "me:hidden@host")
    assert cli(["simulate", str(config)]) == 2
    assert "this is no address" in (said := capsys.readouterr().err) and "hidden" not in said
    turns, done = tmp_path / "run" / "turns.jsonl", 0
    for budget in (0.004, 1.0):
        with served(FaultServer()) as url:
            monkeypatch.setenv("MADE_UP_AT", url.removeprefix("http://").removesuffix("/v1"))
            code = cli(["simulate", str(config), f"budget_usd={budget}"])
            assert (code, len(turns.read_text().splitlines()) > done) == (2 if budget < 1 else 0, True)
        done = len(turns.read_text().splitlines())
    calls = list(read_calls(tmp_path / "run" / "ledger_simulate.jsonl"))
    assert {c.base_url for c in calls} == {"http://$MADE_UP_AT/v1"} and len(calls) == 2 * 12  # none asked twice


@pytest.mark.parametrize(("error", "status"), [(Unfinished("later"), 75), (UserError("mend it"), 2)])
def test_the_exit_status_tells_a_loop_whether_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: UserError, status: int
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(importlib.import_module("rollout_env.simulate"), "main", fail)
    assert cli(["simulate", "x.yaml"]) == status
    assert capsys.readouterr().err == f"psychepass simulate: {error}\n"


def test_a_limit_of_open_files_below_the_calls_at_once_is_said() -> None:
    """In a process of its own: a hard limit cannot be raised again."""
    program = """
import resource, sys
from rollout_env.endpoint_sessions import permit_sockets
resource.setrlimit(resource.RLIMIT_NOFILE, (128, int(sys.argv[1])))
permit_sockets(200)
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""
    for hard in (300, 600):
        command = [sys.executable, "-c", program, str(hard)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
        assert int(done.stdout) == min(hard, 200 + 256)
        told = "200 calls at once" in done.stderr and f"this system permits {hard}" in done.stderr
        assert told == (hard < 200 + 256), done.stderr

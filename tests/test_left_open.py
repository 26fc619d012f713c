"""What is left for the next run: how it is counted and told, and with which exit status the stages end."""

from __future__ import annotations

import importlib
from typing import Any

import pytest

from psychepass.cli import main as cli
from psychepass.endpoint import Endpoint
from psychepass.errors import Unfinished, UserError
from psychepass.left_open import LeftOpen
from psychepass.llm import BudgetSpent, Refused, Transport

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


@pytest.mark.parametrize(("error", "status"), [(Unfinished("later"), 75), (UserError("mend it"), 2)])
def test_the_exit_status_tells_a_loop_whether_to_go_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: UserError, status: int
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(importlib.import_module("rollout_env.simulate"), "main", fail)
    assert cli(["simulate", "x.yaml"]) == status
    assert capsys.readouterr().err == f"psychepass simulate: {error}\n"

"""Stage `tournament` with LLM judges: what is refused before any call, and what --dry-run tells."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from psychepass import llm, records
from psychepass.cli import main as cli
from psychepass.ledger import read_calls
from psychepass.schema import Script, Session
from tests.conftest import ROOT
from tests.fault_server import MODEL, FaultServer, served
from tests.judge_rig import judges, read, write_run


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(llm, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(llm, "LONGEST_PAUSE_S", 0.05)


# --- bad input: one clear error, before any call -----------------------------------------------------


def bad(url: str, fault: str) -> list[dict[str, Any]]:
    if fault == "name":
        return [*judges(url), *judges(url)]
    if fault == "key":
        return judges(url, key_env="NO_SUCH_KEY")
    if fault == "host":
        return judges("http://127.0.0.1:9/v1")
    if fault == "price":
        return judges(url, price={"input": -1, "output": 2})
    if fault == "secret":
        return [judges(url)[0] | {"api_key": "sk-secret"}]
    return judges(url, model="made-up-9")


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("name", "two judges are called judge-0; each needs a name of its own"),
        ("key", "made-up-1 at {url}: the environment variable NO_SUCH_KEY is not set"),
        ("host", "http://127.0.0.1:9/v1 (model 'made-up-1') cannot be reached: "),
        ("model", "{url} has no model 'made-up-9'; it lists made-up-1 "),
        ("price", "price.input: Input should be greater than or equal to 0, got -1"),
        ("secret", "unknown key 'judges.0.api_key' (value a value not shown here)"),
        ("contestants", "4 train and test clients and 1 contestants (c0); a tournament needs two of each or more"),
        ("rounds", "rounds: 9 rounds of 4 contestants need rematches"),
    ],
)
def test_bad_input_is_one_error_before_any_call_and_can_be_mended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, fault: str, told: str
) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    server = FaultServer()
    with served(server) as url:
        if fault == "contestants":
            config = write_run(tmp_path, judges(url), 4, 1)
        elif fault == "rounds":
            config = write_run(tmp_path, judges(url), 4, 4, rounds=9)
        else:
            config = write_run(tmp_path, bad(url, fault), 4, 4)
        before = sorted(p.name for p in (tmp_path / "run").iterdir())
        assert cli(["tournament", str(config)]) == 2
        captured = capsys.readouterr().err
        error = [line for line in captured.splitlines() if line.startswith("psychepass tournament: ")]
        assert len(error) == 1 and told.format(url=url) in error[0] and "sk-secret" not in captured
        assert not server.log and {p.name for p in (tmp_path / "run").iterdir()} - {"manifests"} == set(before)
        if fault == "contestants":
            return
        config = write_run(tmp_path, judges(url), 4, 4)
        assert cli(["tournament", str(config)]) == 0
    assert len(read(tmp_path / "run", "battles.jsonl")) == 32


def test_battles_of_another_judge_are_refused_before_any_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = FaultServer()
    with served(server) as url:
        config = write_run(tmp_path / "one", judges(url), 3, 3)
        assert cli(["tournament", str(config)]) == 0
        asked = len(server.log)
        held = (tmp_path / "one" / "run" / "battles.jsonl").read_bytes()
        warmer = [judges(url)[0] | {"sampling": {"temperature": 1.0, "max_tokens": 512}}]
        for entries, told in (
            (warmer, "(temperature 0, top_p 1, at most 512 tokens, seed 0)' and "),
            (None, "name 'reference-judge' and 'judge-0'"),
        ):
            config = write_run(tmp_path / f"other-{entries is None}", entries, 3, 3)
            path = config.parent / "run" / "battles.jsonl"
            path.write_bytes(held)
            capsys.readouterr()
            assert cli(["tournament", str(config)]) == 2
            error = capsys.readouterr().err
            assert told in error or "temperature 1, top_p 1" in error
            assert "one ranking has one judge, one prompt and one rubric version" in error
            assert path.read_bytes() == held and len(server.log) == asked
        # another judge in the same run: the manifest says so
        config = write_run(tmp_path / "one", warmer, 3, 3)
        assert cli(["tournament", str(config)]) == 2
        told = (
            "ran before with other config (judges.0.sampling.temperature: was 0.0, is 1.0); use another run directory"
        )
        assert told in capsys.readouterr().err and len(server.log) == asked


def test_replies_of_another_judge_are_refused_even_without_a_battle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = FaultServer()
    with served(server) as url:
        config = write_run(tmp_path / "one", judges(url), 3, 3)
        assert cli(["tournament", str(config)]) == 0
        asked = len(server.log)
        other = write_run(tmp_path / "other", [judges(url)[0] | {"seed": 7}], 3, 3)
        held = (config.parent / "run" / "judge_replies.jsonl").read_bytes()
        (other.parent / "run" / "judge_replies.jsonl").write_bytes(held)
        capsys.readouterr()
        for options in ([], ["--dry-run"]):
            assert cli(["tournament", str(other), *options]) == 2
            error = capsys.readouterr().err
            assert (
                "tokens, seed 0), prompt" in error and "tokens, seed 7), prompt" in error and len(server.log) == asked
            )


def test_sessions_of_two_scripts_cannot_meet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served(FaultServer()) as url:
        config = write_run(tmp_path, judges(url), 3, 3)
        run = tmp_path / "run"
        scripts, sessions = records.read(run / "scripts.jsonl", Script), records.read(run / "sessions.jsonl", Session)
        sessions[1] = sessions[1].model_copy(update={"script_id": scripts[1].id})
        records.write(run / "sessions.jsonl", sessions)
        assert cli(["tournament", str(config)]) == 2
    assert "with client train-0 follow different scripts" in capsys.readouterr().err


def test_price_and_limits_may_change_on_a_run(tmp_path: Path) -> None:
    with served(FaultServer()) as url:
        config = write_run(tmp_path, judges(url), 3, 3)
        assert cli(["tournament", str(config), "budget_usd=0.01"]) == 2
        changed = judges(url, price={"input": 0, "output": 0}, max_concurrent=3, timeout_s=9)
        assert cli(["tournament", str(write_run(tmp_path, changed, 3, 3))]) == 0


# --- --dry-run ---------------------------------------------------------------------------------------


def test_a_dry_run_counts_what_is_missing_and_asks_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server = FaultServer()
    with served(server) as url:
        config = write_run(tmp_path, judges(url, 2), 4, 4, budget_usd=0.05)
        before = sorted((tmp_path / "run").rglob("*"))
        assert cli(["tournament", str(config), "--dry-run"]) == 0
        row, _, budget = capsys.readouterr().out.splitlines()[1:]
        assert sorted((tmp_path / "run").rglob("*")) == before and not server.log
        calls, prompt, asked_for, usd, most_prompt, most_said, most_usd = numbers(row, f"{MODEL} at {url}")
        assert calls == 4 * 4 * 2 * 2 and most_said == calls * 512 and asked_for == calls * 504
        assert (
            usd == pytest.approx((prompt + 2 * asked_for) / 1e6, abs=1e-4) and most_prompt >= prompt and most_usd > usd
        )
        assert "NOT enough" in budget
        assert cli(["tournament", str(config)]) == 2
        spent = sum(c.cost_usd for c in read_calls(tmp_path / "run" / "ledger_tournament.jsonl"))
        sent = [len(b["messages"][0]["content"].encode()) / 4 for b in server.bodies]
        assert prompt / calls == pytest.approx(sum(sent) / len(sent), rel=0.05)
        done = len(read(tmp_path / "run", "judge_replies.jsonl"))
        capsys.readouterr()
        assert cli(["tournament", str(config), "--dry-run"]) == 0
        row, _, budget = capsys.readouterr().out.splitlines()[1:]
        assert 0 < done < 64 and numbers(row, f"{MODEL} at {url}")[0] == 64 - done
        assert f"spent {spent:.4f}" in budget
    assert cli(["tournament", str(write_run(tmp_path, None, 4, 4)), "--dry-run"]) == 2
    assert "--dry-run: the reference judge calls no model" in capsys.readouterr().err


def numbers(row: str, model: str) -> list[float]:
    return [float(x.replace(",", "")) for x in row.removeprefix(model).split()]

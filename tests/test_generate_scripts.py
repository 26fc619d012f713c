"""Stage `scripts`: what a model wrote is a script only if the builder and the lint say so; faults are shown to it."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from psychepass import llm, records
from psychepass.cli import main as cli
from psychepass.config import load
from psychepass.ledger import read_calls
from psychepass.schema import LOCAL_DIMENSIONS, Failure, Script, ScriptDraft, Session
from psychepass.splits import Splits
from rollout_env.generate_scripts import ScriptsConfig
from rollout_env.script import build_script
from rollout_env.script_lint import lint
from rollout_env.script_source import bank_named
from rollout_env.script_writer import Pool, is_unsafe, read_script, writer_prompt
from tests import chinese_client
from tests.endpoint_rig import ROOT, contestants, write_config
from tests.fault_server import ALWAYS, MODEL, Fault, FaultServer, served, settle
from tests.played_client import client, obedient
from tests.script_server import FAULTS, SHIPPED, writer

SPLITS = load(Splits, ROOT / "configs" / "splits.yaml")
LIN = chinese_client.PROFILE


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(llm, "FIRST_PAUSE_S", 0.02)
    monkeypatch.setattr(llm, "LONGEST_PAUSE_S", 0.05)


def write_scripts_config(folder: Path, url: str, sets: dict[str, list[str]] | None = None, **change: Any) -> Path:
    """All shipped clients and a Chinese one, unless `sets` says otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    profiles = folder / "profiles.jsonl"
    records.write(profiles, [*SHIPPED.values(), LIN])
    held = sets or SPLITS.model_dump() | {"train": [*SPLITS.train, LIN.profile_id]}
    (folder / "splits.yaml").write_text(yaml.safe_dump(held))
    endpoint = {"base_url": url, "model": MODEL, "price": {"input": 1.0, "output": 2.0}, "timeout_s": 60.0}
    config = {
        "run": str(folder / "run"),
        "splits": str(folder / "splits.yaml"),
        "profiles": str(profiles),
        "endpoint": endpoint | change.pop("endpoint", {}),
        "sampling": {"temperature": 0.7, "max_tokens": 6000},
    }
    path = folder / "scripts.yaml"
    path.write_text(yaml.safe_dump(config | change))
    return path


def small(*train: str, heldout: tuple[str, ...] = ()) -> dict[str, list[str]]:
    return {"train": list(train), "test": [], "dev": [], "heldout": list(heldout)}


def made(run: Path) -> dict[str, Script]:
    return {s.profile_id: s for s in records.read(run / "generated_scripts.jsonl", Script)}


def test_every_client_gets_a_valid_script_english_and_chinese_after_repairs(tmp_path: Path) -> None:
    faulty = dict(zip(SHIPPED, FAULTS, strict=False))
    hopeless = list(SHIPPED)[-1]
    speak = writer(faulty, {hopeless: "late crisis"})
    server = FaultServer((Fault("500", 0.1, 2), Fault("empty", 0.1)), say=speak)
    with served(server) as url:
        config = write_scripts_config(tmp_path, url)
        assert cli(["scripts", str(config)]) == 0
        run, asked = tmp_path / "run", len(server.log)
        assert cli(["scripts", str(config)]) == 0 and len(server.log) == asked
    scripts = made(run)
    assert set(scripts) == {*SHIPPED, LIN.profile_id} - {hopeless}
    for i, script in scripts.items():
        assert lint(script, bank_named(script.bank)) == []
        assert script.bank == ("heldout" if i in SPLITS.heldout else "common")
        assert len(script.turns) == 44 and {t.evaluator.dimension for t in script.turns} >= set(LOCAL_DIMENSIONS)
        if i != LIN.profile_id:
            assert script.id == build_script(SHIPPED[i], "full").id  # the model sent the bank's own lines
    (failure,) = records.read(run / "script_failures.jsonl", Failure)
    assert failure.subject == hopeless and failure.reason == "no valid script in 3 tries"
    drafts = records.read(run / "script_drafts.jsonl", ScriptDraft)
    first = {d.profile_id: d for d in drafts if (d.attempt == 0 and not d.faults[:1]) or d.attempt == 0}
    for i, fault in faulty.items():
        told = first[i].faults[0]
        assert FAULTS[fault][1] in "; ".join(first[i].faults) or told.startswith("no readable answer")
    assert "pills" not in (run / "script_drafts.jsonl").read_text()
    spent = sum(c.cost_usd for c in read_calls(run / "ledger_scripts.jsonl"))
    assert spent == pytest.approx(sum(d.usage.cost_usd for d in drafts))
    notes = records.read_json(run / "manifests" / "scripts.json")["notes"]
    assert notes == {"scripts": 32, "failures": 1, "drafts": len(drafts)}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_shown_and_mended(tmp_path: Path, fault: str) -> None:
    name = "tomasz-wilk"
    server = FaultServer(say=writer({name: fault}))
    with served(server) as url:
        assert cli(["scripts", str(write_scripts_config(tmp_path, url, small(name)))]) == 0
    bad, good = records.read(tmp_path / "run" / "script_drafts.jsonl", ScriptDraft)
    assert any(FAULTS[fault][1] in f for f in bad.faults) and not good.faults
    repair = server.bodies[1]["messages"][-1]["content"]
    assert FAULTS[fault][1] in repair and len(made(tmp_path / "run")) == 1
    assert (len(server.bodies[1]["messages"]) == 3) == (fault != "unsafe") == bool(bad.text)


def test_the_prompt_says_what_a_valid_script_needs() -> None:
    for name, bank in ((LIN.profile_id, "common"), ("noor-van-dijk", "heldout")):
        profile = LIN if name == LIN.profile_id else SHIPPED[name]
        shown = writer_prompt(profile, bank_named(bank))
        assert all(d.value in shown for d in LOCAL_DIMENSIONS) and profile.situation in shown
        assert all(k in shown for k in (*bank_named(bank).needs, *bank_named(bank).techniques))
        assert ("in Chinese" in shown) == (profile.language == "zh") and "5, 5, 15, 10, 5" in shown


def test_two_clients_may_not_share_lines_nor_heldout_ones_runs_of_words() -> None:
    script, faults = read_script(yaml.safe_dump(chinese_client.lines()), LIN, bank_named("common"))
    assert script is None and faults[0].startswith("not one JSON object")
    pool, built = Pool(), build_script(SHIPPED["tomasz-wilk"], "full")
    pool.add(built, "train")
    twin = built.model_copy(update={"profile_id": "twin"})
    assert pool.faults(built, "train") == ()
    assert [f.split(":")[0] for f in pool.faults(twin, "train")] == ["shares whole lines with another client"]
    assert any(f.startswith("shares runs of 8 words") for f in pool.faults(twin, "heldout"))
    assert pool.faults(build_script(SHIPPED["noor-van-dijk"], "full"), "heldout") == ()


def test_an_unsafe_draft_is_seen_through_jsons_escapes_and_a_deep_one_is_a_fault() -> None:
    hidden = json.dumps({"say": "\u4e0a\u540a"})
    assert "\u4e0a" not in hidden and is_unsafe(hidden) and not is_unsafe(json.dumps({"say": "\u8c46\u8150"}))
    script, faults = read_script("[" * 100_000, LIN, bank_named("common"))
    assert script is None and faults[0].startswith("not one JSON object")


def test_kills_lose_at_most_calls_in_flight(tmp_path: Path) -> None:
    faulty = dict(zip(SHIPPED, ("no crisis", "reply", "bad target") * 4, strict=False))
    server = FaultServer(delay_s=0.15, say=writer(faulty))
    rng = random.Random(3)
    with served(server) as url:
        config = write_scripts_config(tmp_path, url, endpoint={"max_concurrent": 4})
        command = [sys.executable, "-m", "psychepass.cli", "scripts", str(config)]
        for _ in range(3):
            wanted = len(server.log) + rng.randint(4, 12)
            server.hold_from = wanted  # however late the kill, it comes before the end
            process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
            while process.poll() is None and len(server.log) < wanted:
                time.sleep(0.002)
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
            server.hold_from = None
            settle(url)
            while server.open:
                time.sleep(0.01)
        subprocess.run(command, cwd=ROOT, check=True, stderr=subprocess.DEVNULL)
    drafts = records.read(tmp_path / "run" / "script_drafts.jsonl", ScriptDraft)
    assert len(made(tmp_path / "run")) == 33 and len(drafts) == 33 + len(faulty)
    assert len(drafts) <= len(server.log) <= len(drafts) + 3 * 4


def test_what_got_no_answer_is_left_for_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(llm, "TRIES", 1)
    server = FaultServer((Fault("500", 1.0, ALWAYS),), say=writer({}))
    with served(server) as url:
        config = write_scripts_config(tmp_path, url, small("tomasz-wilk", heldout=("noor-van-dijk",)))
        assert cli(["scripts", str(config)]) == 75
        assert f"2 of 2 scripts were left open (2: {MODEL} at {url}: status 500" in capsys.readouterr().err
        server.faults, server.down = (), True
        assert cli(["scripts", str(config)]) == 75
        assert f"2 of 2 scripts were left open (2: {MODEL} at {url}: cannot be reached)" in capsys.readouterr().err
        server.down = False
        assert cli(["scripts", str(config)]) == 0


def test_a_dry_run_and_a_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = FaultServer(say=writer({"tomasz-wilk": "no crisis"}))
    with served(server) as url:
        config = write_scripts_config(tmp_path, url, small("tomasz-wilk", "rosa-delgado", heldout=("noor-van-dijk",)))
        assert cli(["scripts", str(config), "--dry-run"]) == 0
        row = capsys.readouterr().out.splitlines()[1].removeprefix(f"{MODEL} at {url}").replace(",", "").split()
        assert not server.log and not (tmp_path / "run").exists()
        assert row[0] == "3" and row[2] == str(3 * 4000) and row[5] == str(9 * 6000)
        assert cli(["scripts", str(config), "budget_usd=0.025"]) == 2
        error = capsys.readouterr().err
        assert "scripts were left open" in error and "budget_usd is 0.025" in error and len(server.log) >= 1
        assert cli(["scripts", str(config), "budget_usd=5"]) == 0 and len(server.log) == 4
        capsys.readouterr()
        assert cli(["scripts", str(config), "--dry-run"]) == 0
        assert capsys.readouterr().out.splitlines()[1].removeprefix(f"{MODEL} at {url}").split()[0] == "0"
    assert len(made(tmp_path / "run")) == 3


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"endpoint": {"model": "made-up-9"}}, "has no model 'made-up-9'"),
        ({"endpoint": {"key_env": "NO_SUCH_KEY"}}, "the environment variable NO_SUCH_KEY is not set"),
        ({"endpoint": {"base_url": "http://127.0.0.1:9/v1"}}, "cannot be reached"),
        ({"repairs": -1}, "repairs: Input should be greater than or equal to 0, got -1"),
        ({"profiles": "/no/such.jsonl"}, "/no/such.jsonl: "),
        ({"splits": "/no/such.yaml"}, "/no/such.yaml: "),
    ],
)
def test_bad_input_is_one_error_before_any_call(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], told: str
) -> None:
    server = FaultServer(say=writer({}))
    with served(server) as url:
        assert cli(["scripts", str(write_scripts_config(tmp_path, url, small("tomasz-wilk"), **change))]) == 2
        error = [x for x in capsys.readouterr().err.splitlines() if x.startswith("psychepass scripts: ")]
        assert len(error) == 1 and told in error[0] and not server.log
        assert cli(["scripts", str(write_scripts_config(tmp_path, url, small("tomasz-wilk")))]) == 0


def test_a_split_of_an_unknown_profile_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_scripts_config(tmp_path, "http://127.0.0.1:9/v1", small("nobody"))
    assert cli(["scripts", str(config)]) == 2 and "no profile is called nobody" in capsys.readouterr().err


# --- the other stages read them --------------------------------------------------------------------


def test_simulate_reads_profiles_and_scripts_of_files_in_both_languages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = small("tomasz-wilk", LIN.profile_id, heldout=("noor-van-dijk",))
    with served(FaultServer(say=writer({}))) as url:
        assert cli(["scripts", str(write_scripts_config(tmp_path, url, names))]) == 0
    files = {"profiles": str(tmp_path / "profiles.jsonl"), "splits": str(tmp_path / "splits.yaml")}
    files["scripts"] = str(tmp_path / "run" / "generated_scripts.jsonl")
    server = FaultServer(say=obedient)
    with served(server) as url:
        change = {**files, "form": "full", "client": client(url)}
        config = write_config(tmp_path / "sessions", contestants(url, 1), 1, **change)
        assert cli(["simulate", str(config)]) == 0
        config = write_config(tmp_path / "short", contestants(url, 1), 1, **change | {"form": "short"})
        capsys.readouterr()
        assert cli(["simulate", str(config)]) == 2
        assert "has the form 'full', not 'short'" in capsys.readouterr().err
    sessions = {s.profile_id: s for s in records.read(tmp_path / "sessions" / "run" / "sessions.jsonl", Session)}
    assert set(sessions) == {"tomasz-wilk", LIN.profile_id} and {len(s.turns) for s in sessions.values()} == {44}
    assert not any(s.violations for s in sessions.values())
    assert sessions[LIN.profile_id].turns[0].client == chinese_client.PHASES[0][2][0]


def test_the_shipped_config_loads() -> None:
    config = load(ScriptsConfig, ROOT / "configs" / "scripts.yaml")
    assert config.repairs == 2 and config.sampling.max_tokens >= 6000

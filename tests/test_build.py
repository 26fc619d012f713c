"""Stage `data`: its files, their counts, the likelihood band, byte-equality, and clear errors."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from psychepass import records
from psychepass.cli import main as cli
from psychepass.config import load
from psychepass.schema import Battle, PreferencePair, Session
from tests.conftest import ROOT
from tests.made import battle, identity, session
from tests.tiny import tiny_model
from training.build import DataConfig

MADE = ("pairs.jsonl", "prompts.parquet", "data.json")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("policy"))


def write_run(folder: Path, shuffle: int = 0) -> Path:
    """Two train clients and a test client met by base and other; two dev clients met by base and its repeat."""
    sessions: list[Session] = []
    battles: list[Battle] = []
    for profile, split in (("p1", "train"), ("p2", "train"), ("p3", "test")):
        base, other = session(profile, identity("base"), split), session(profile, identity("other"), split)
        sessions += [base, other]
        battles.append(battle(base, other, "A" if profile != "p2" else "B"))
    for profile in ("d1", "d2"):
        sessions.append(session(profile, identity("base", "base"), "dev"))
        sessions.append(session(profile, identity("base2", "base", seed=2), "dev", seed=2))
    random.Random(shuffle).shuffle(sessions)
    random.Random(shuffle).shuffle(battles)
    records.write(folder / "sessions.jsonl", sessions)
    records.write(folder / "battles.jsonl", battles)
    return folder


def write_config(folder: Path, run: Path, weights: Path, **changes) -> str:
    keys = {"run": str(run), "base": "base", "model": str(weights), "prompt": "paper", "max_prompt_tokens": 300}
    path = folder / "data.yaml"
    path.write_text(json.dumps(keys | {"overlong": "cut"} | changes))
    return str(path)


@pytest.fixture(scope="module")
def made(model, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    run = write_run(folder / "run")
    assert cli(["data", write_config(folder, run, model)]) == 0
    return run


def test_pairs_are_of_train_and_test_clients(made):
    pairs = records.read(made / "pairs.jsonl", PreferencePair)
    assert {p.split for p in pairs} == {"train", "test"} and len(pairs) == 33
    known = {b.id for b in records.read(made / "battles.jsonl", Battle)}
    assert {b for p in pairs for b in p.battles} == known


def test_prompts_come_from_the_base_alone_and_are_cut_not_dropped(made):
    rows = pq.read_table(made / "prompts.parquet").to_pylist()
    base = {s.id for s in records.read(made / "sessions.jsonl", Session) if s.therapist.name == "base"}
    assert {r["extra_info"]["session"] for r in rows} <= base
    assert [r["extra_info"]["split"] for r in rows] == ["train"] * 22 + ["dev"] * 22
    assert rows[0]["prompt"][0]["role"] == "system" and "around 30 words" in rows[0]["prompt"][0]["content"]
    assert all(r["prompt"][-1]["role"] == "user" for r in rows)
    assert rows[5]["extra_info"]["dimensions"] == ["crisis", "empathy", "engagement"]


def test_counts(made):
    facts = records.read_json(made / "data.json")
    assert facts["pairs"]["n"] == 33 and facts["pairs"]["verdicts"] == 36 and facts["pairs"]["matches"] == 3
    assert facts["pairs"]["kept_share"] == pytest.approx(33 / 36)
    assert facts["pairs"]["dimensions"]["crisis"] == 3 and "diversity" not in facts["pairs"]["dimensions"]
    assert facts["prompts_n"] == {"train": 22, "dev": 22}
    assert facts["prompts"]["train"]["crisis"] == {"1": 0, "2": 0, "3": 2, "4": 0, "5": 0}
    assert facts["prompts"]["dev"]["empathy"] == {"1": 4, "2": 4, "3": 6, "4": 4, "5": 4}
    assert facts["prompts_with_cut_history"] > 0


def test_likelihood_band_is_of_the_bases_dev_replies_and_its_repeats(made):
    facts = records.read_json(made / "data.json")
    dev = [s for s in records.read(made / "sessions.jsonl", Session) if s.split == "dev"]
    values = [t.logprob for s in dev for t in s.turns]
    assert facts["logprob_band_n"] == len(values) == 44
    assert facts["logprob_band"] == pytest.approx(np.quantile(values, [0.01, 0.99]), abs=1e-6)


def test_made_again_from_the_same_records_is_byte_equal(made, model, tmp_path):
    run = write_run(tmp_path / "run", shuffle=7)
    assert cli(["data", write_config(tmp_path, run, model)]) == 0
    assert (run / "sessions.jsonl").read_bytes() != (made / "sessions.jsonl").read_bytes()
    for name in MADE:
        assert (run / name).read_bytes() == (made / name).read_bytes(), name


def test_a_base_that_answered_under_another_prompt_is_refused(model, tmp_path, capsys):
    run = write_run(tmp_path / "run")
    assert cli(["data", write_config(tmp_path, run, model, prompt="warm")]) == 2
    assert "not under prompt 'warm' for 30 words" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"base": "nobody"}, "no train session of base 'nobody'; train has ['base', 'other']"),
        ({"prompt": "brisk"}, "therapist_brisk.txt: no such prompt"),
        ({"max_prompt_tokens": 90, "overlong": "drop"}, "probes crisis"),
        ({"max_prompt_tokens": 20}, "max_prompt_tokens is 20"),
        ({"overlong": "shorten"}, "'cut' or 'drop'"),
        ({"model": "no-such-folder"}, "no such folder"),
    ],
)
def test_bad_input_is_one_clear_error_and_leaves_nothing_half_made(model, tmp_path, capsys, changes, said):
    run = write_run(tmp_path / "run")
    assert cli(["data", write_config(tmp_path, run, model, **changes)]) == 2
    assert said in capsys.readouterr().err
    assert not any((run / name).exists() for name in MADE)
    assert cli(["data", write_config(tmp_path, run, model)]) == 0  # mended, it goes on


@pytest.mark.parametrize("name", ["data.yaml", "quickstart/data.yaml"])
def test_shipped_configs_load(name):
    assert load(DataConfig, ROOT / "configs" / name).overlong == "cut"

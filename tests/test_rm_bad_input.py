"""What stage `rm` refuses, each by one sentence and before it has made anything that would be in the way."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from psychepass import records
from psychepass.cli import main as cli
from psychepass.schema import PreferencePair, Session, Side
from reward_model import model as models
from tests.test_reward_model import write_config, write_run
from tests.tiny import tiny_model, tiny_tokenizer


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("base"))


def _err(capsys) -> str:
    return capsys.readouterr().err


def test_a_pair_of_a_missing_session_or_turn_is_named(base, tmp_path, capsys):
    run = write_run(tmp_path / "run", train=2, test=1)
    config = str(write_config(tmp_path, run, base))
    pairs = records.read(run / "pairs.jsonl", PreferencePair)
    sessions = records.read(run / "sessions.jsonl", Session)
    lost = pairs[0].chosen.session
    records.write(run / "sessions.jsonl", [s for s in sessions if s.id != lost])
    assert cli(["rm", config]) == 2
    assert f"1 sessions of pairs.jsonl are missing, e.g. {lost}" in _err(capsys)
    records.write(run / "sessions.jsonl", sessions)
    wrong = pairs[0].model_copy(update={"chosen": Side(session=lost, turns=(99,))})
    records.write(run / "pairs.jsonl", [wrong, *pairs[1:]])
    assert cli(["rm", config]) == 2
    assert f"pair {wrong.id}: session {lost} has no turn 99; it has 11" in _err(capsys)
    assert not (run / "manifests" / "rm.json").exists()  # so that a mended file may follow


def test_a_reply_longer_than_a_window_is_named(base, tmp_path, capsys):
    run = write_run(tmp_path / "run", train=2, test=1)
    assert cli(["rm", str(write_config(tmp_path, run, base, max_length=60, max_response=16))]) == 2
    assert re.search(r"session \w+, turn \d+: client line and reply are \d+ tokens; max_length 60 leaves", _err(capsys))


def test_a_tokenizer_without_an_end_token_is_refused(base, tmp_path, capsys):
    bare = shutil.copytree(base, tmp_path / "bare")
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(bare)
    run = write_run(tmp_path / "run", train=2, test=1)
    assert cli(["rm", str(write_config(tmp_path, run, bare))]) == 2
    assert f"{bare}: the reward text needs a tokenizer with an eos token" in _err(capsys)


def test_a_loss_that_is_not_finite_ends_the_training(base, tmp_path, capsys):
    run = write_run(tmp_path / "run", train=3, test=1)
    config = write_config(tmp_path, run, base, learning_rate=1e37, warmup_ratio=0.0)
    assert cli(["rm", str(config)]) == 2
    said = r"the loss of step [23] \(clients p\d\) is (nan|inf); lower learning_rate \(1e\+37\)"
    assert re.search(said, _err(capsys))
    assert not (run / "reward_model" / models.CARD).exists()


def test_weights_that_are_not_finite_are_never_saved_as_a_model(base, tmp_path, capsys):
    """One step: its loss is finite, the weights that it leaves are not."""
    run = write_run(tmp_path / "run", train=1, test=1)
    changes = {"learning_rate": 1e37, "weight_decay": 1e10, "warmup_ratio": 0.0, "epochs": 1}
    assert cli(["rm", str(write_config(tmp_path, run, base, **changes))]) == 2
    assert "is not finite after the last step" in _err(capsys)
    assert not (run / "reward_model" / models.CARD).exists()

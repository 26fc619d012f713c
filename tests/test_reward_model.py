"""Loss, model folder, training stage with resume after SIGKILL, and evaluation beside its baselines."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from psychepass import records
from psychepass.cli import main as cli
from psychepass.config import load as load_config
from psychepass.errors import UserError
from psychepass.matmul import fast_fp32
from psychepass.schema import Dimension, PreferencePair, Session
from psychepass.scoring import ScoreGroup
from reward_model import model as models
from reward_model.data import client_steps, join
from reward_model.fit import held_aside
from reward_model.journal import StepLog, last_whole_checkpoint
from reward_model.loss import bradley_terry, pair_loss
from reward_model.scorer import GroupScorer
from reward_model.train import RMConfig
from reward_model.trainer import PairTrainer, training_arguments
from tests.conftest import ROOT
from tests.made import battle, identity, session
from tests.tiny import tiny_model, tiny_tokenizer
from training.pairs import REWARDED, context_of, pairs_of
from training.render import Renderer

TINY = {
    "learning_rate": 0.003,
    "epochs": 3,
    "layers": 1,
    "max_length": 2048,
    "max_response": 128,
    "precision": "fp32",
    "warmup_ratio": 0.1,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "clients_per_step": 1,
    "two_pass": False,
    "centering": 0.01,
    "validation_clients": 0,
}


def kind(rng: random.Random, turn: int) -> str:
    return rng.choice(["It sounds like you feel lonely in that house.", "You feel tired, and you miss her."])


def curt(rng: random.Random, turn: int) -> str:
    return rng.choice(["I never asked how my day was, so keep going then.", "Nobody is frightened of total failure."])


def write_run(folder: Path, train: int = 3, test: int = 2) -> Path:
    """A run directory whose judge always prefers one of two therapists, and two seeds of the worse one tie."""
    kept, battles = [], []
    for number in range(train + test):
        split = "train" if number < train else "test"
        sides = [
            session(f"p{number}", identity("kind"), split, reply=kind),
            session(f"p{number}", identity("curt", "curt"), split, reply=curt),
            session(f"p{number}", identity("curt2", "curt"), split, reply=curt, seed=1),
        ]
        kept += sides
        battles += [battle(sides[0], sides[1], "A"), battle(sides[2], sides[0], "B")]
        battles.append(battle(sides[1], sides[2], {Dimension.CRISIS: "A"}))
    records.write(folder / "sessions.jsonl", kept)
    records.write(folder / "pairs.jsonl", pairs_of(battles, {s.id: s for s in kept}))
    return folder


def write_config(folder: Path, run: Path, base: Path, **changes) -> Path:
    path = folder / "rm.yaml"
    path.write_text(json.dumps({"run": str(run), "base": str(base)} | TINY | changes))
    return path


def log_of(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "reward_model" / "train_log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory) -> Path:
    """A run directory after rm and rm-eval."""
    folder = tmp_path_factory.mktemp("trained")
    run = write_run(folder / "run")
    assert cli(["rm", str(write_config(folder, run, base))]) == 0
    (folder / "eval.yaml").write_text(json.dumps({"run": str(run)}))
    assert cli(["rm-eval", str(folder / "eval.yaml")]) == 0
    return run


# --- loss --------------------------------------------------------------------------------------


def test_loss_is_log_2_at_equal_scores():
    assert bradley_terry(torch.zeros(5), torch.rand(5) + 0.1).item() == pytest.approx(math.log(2))


def test_loss_by_hand():
    loss = bradley_terry(torch.tensor([1.0, -2.0]), torch.tensor([1.0, 0.5]))
    assert loss.item() == pytest.approx((math.log1p(math.exp(-1)) + 0.5 * math.log1p(math.exp(2))) / 1.5)


def test_pair_loss_means_over_a_sides_turns_and_centers():
    rewards = torch.tensor([1.0, 3.0, 0.0], requires_grad=True)
    chosen, rejected = torch.tensor([[0.5, 0.5, 0.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    result = pair_loss(rewards, chosen, rejected, torch.ones(1), centering=0.1)
    assert result.loss.item() == pytest.approx(math.log1p(math.exp(-2)) + 0.1 * 4)
    assert (result.accuracy, result.margin) == (1.0, 2.0)
    result.loss.backward()
    assert rewards.grad is not None and rewards.grad[0] == rewards.grad[1]


def test_equal_rewards_count_half():
    one = torch.ones(1, 1)
    assert pair_loss(torch.zeros(1), one, one, torch.ones(1), 0.0).accuracy == 0.5


# --- model -------------------------------------------------------------------------------------


def test_a_saved_model_loads_with_identical_scores(base, tmp_path):
    fast_fp32()  # as load sets it: products of another kernel differ in the last bit
    model = models.from_base(base, 1, seed=3).eval()
    tokenizer = tiny_tokenizer()
    card = models.save(model, tokenizer, tmp_path, str(base), 2048, 128)
    models.finish(model, tmp_path, card)
    side = session("p1", identity("a"))
    group = ScoreGroup(context=context_of(side, 4), responses=("You feel tired.", ""), dimensions=REWARDED)
    before = GroupScorer(model, Renderer(tokenizer, 2048, 128), "before").score([group])
    loaded = GroupScorer.load(tmp_path)
    assert loaded.score([group]) == before
    assert torch.equal(loaded.model.head.weight, model.head.weight)
    assert loaded.name == card.model and len(loaded.model.layers) == card.layers == 1


def test_changed_weights_and_unfinished_folders_are_refused(base, tmp_path):
    model = models.from_base(base, 1, seed=3)
    card = models.save(model, tiny_tokenizer(), tmp_path, str(base), 2048, 128)
    with pytest.raises(UserError, match="no finished reward model here"):
        models.load(tmp_path)
    models.finish(model, tmp_path, card)
    head = load_file(tmp_path / "head.safetensors")["weight"]
    save_file({"weight": head + 1}, tmp_path / "head.safetensors")
    with pytest.raises(UserError, match="weights are not those of"):
        models.load(tmp_path)
    with pytest.raises(AssertionError, match=r"head\.weight changed"):
        models.finish(model, tmp_path, card)


def test_another_tokenizer_is_refused(base, tmp_path):
    model = models.from_base(base, 1, seed=3)
    models.finish(model, tmp_path, models.save(model, tiny_tokenizer(), tmp_path, str(base), 2048, 128))
    models.load(tmp_path)
    tiny_tokenizer(300).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="tokenizer is not the one that"):
        models.load(tmp_path)


def test_layers_out_of_range_are_refused(base):
    with pytest.raises(UserError, match=r"layers = 3: .* has 2"):
        models.from_base(base, 3, seed=0)
    with pytest.raises(UserError, match="train_layers = 3"):
        models.from_base(base, 2, seed=0).train_top(3)


def test_train_top_leaves_only_the_top_trainable(base):
    model = models.from_base(base, 2, seed=0)
    model.train_top(1)
    trainable = [n for n, p in model.named_parameters() if p.requires_grad]
    assert all(n.startswith(("backbone.layers.1", "backbone.norm", "head")) for n in trainable)
    assert any(n.startswith("backbone.layers.1") for n in trainable)


# --- training ----------------------------------------------------------------------------------


def config_of(folder: Path, base: Path, **changes) -> RMConfig:
    folder.mkdir(parents=True, exist_ok=True)
    return load_config(RMConfig, write_config(folder, folder, base, **changes))


def test_two_pass_gradients_equal_one_pass(base, tmp_path):
    run = write_run(tmp_path / "run", train=2, test=1)
    sessions = {s.id: s for s in records.iterate(run / "sessions.jsonl", Session)}
    pairs = [p for p in records.read(run / "pairs.jsonl", PreferencePair) if p.split == "train"]
    # a budget below a session's length, so that a session is several windows
    steps = client_steps(pairs, sessions, Renderer(tiny_tokenizer(), 400, 128))
    assert len(steps) == 2 and len(steps[0].trees) > 3
    found = []
    for two_pass in (False, True):
        model = models.from_base(base, 2, seed=0)
        config = config_of(tmp_path / str(two_pass), base, two_pass=two_pass)
        trainer = PairTrainer(config, training_arguments(config, tmp_path, False), tmp_path, model, steps, [])
        trainer.training_step(model, {"step": join(steps)})
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert (found[0] - found[1]).norm() / found[0].norm() < 1e-5


def test_held_aside_does_not_depend_on_order():
    clients = [f"p{i}" for i in range(9)]
    assert held_aside(clients, 3) == held_aside(clients[::-1], 3) and len(held_aside(clients, 3)) == 3


def test_training_writes_its_log_model_and_card(trained):
    rows = log_of(trained)
    assert [r["step"] for r in rows] == list(range(1, 10))
    assert {"epoch", "loss", "accuracy", "margin", "grad_norm", "seconds"} <= rows[0].keys()
    assert rows[-1]["loss"] < rows[0]["loss"] and rows[-1]["accuracy"] > 0.9
    card = (trained / "reward_model" / "README.md").read_text()
    assert "does not replace a clinician" in card and "-rm@" in card
    assert "Trained on empathy, discernment" in card and "(it answers for diversity too, which it never learnt)" in card
    saved = models.read_card(trained / "reward_model")
    assert saved.dimensions is not None and set(saved.dimensions) == set(REWARDED)
    assert "69 judged pairs of 3 fictional clients" in card and "Clients are fictional" in card
    assert not (trained / "reward_model" / "checkpoints").exists()
    manifest = records.read_json(trained / "manifests" / "rm.json")
    assert manifest["ended"] and manifest["notes"]["model"] in card
    read = manifest["notes"]["read"]
    assert read["sessions"] > 0 and read["replies"] > 0 and read["windowed"] == read["cut_replies"] == 0
    assert manifest["notes"]["pairs"] == 69 and manifest["notes"]["pairs_left_out"] == 0


def test_metrics_have_every_accuracy_with_its_interval(trained):
    metrics = records.read_json(trained / "reward_model" / "metrics.json")
    assert metrics["n_clients"] == 2 and metrics["n"] == 2 * (11 + 11 + 1)
    assert 0 <= metrics["accuracy_low"] <= metrics["accuracy"] <= metrics["accuracy_high"] <= 1
    assert metrics["accuracy"] > 0.8
    for name in ("longer_wins", "which_therapist", "context_only", "shuffled_dimensions", "same_family"):
        assert {"value", "low", "high", "n", "n_clients"} == metrics[name].keys()
    assert metrics["same_family"]["n"] == 2
    assert metrics["untrained"] == []
    assert metrics["read"]["sessions"] > 0 and metrics["read"]["cut_replies"] == 0
    assert set(metrics["dimensions"]) == {d.value for d in REWARDED}


def test_a_second_call_does_nothing(trained, base, tmp_path, capsys):
    before = {p: p.stat().st_mtime_ns for p in sorted((trained / "reward_model").iterdir())}
    assert cli(["rm", str(write_config(tmp_path, trained, base))]) == 0
    assert "done before" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in sorted((trained / "reward_model").iterdir())} == before


def test_an_epoch_is_chosen_on_clients_held_aside(base, tmp_path):
    run = write_run(tmp_path / "run", train=4, test=1)
    config = write_config(tmp_path, run, base, validation_clients=2, epochs=2, clients_per_step=2)
    assert cli(["rm", str(config)]) == 0
    notes = records.read_json(run / "manifests" / "rm.json")["notes"]
    assert set(notes["validation"]) == {"1", "2"}
    assert notes["validation"][f"{notes['epoch']:g}"] == max(notes["validation"].values())
    card = (run / "reward_model" / "README.md").read_text()
    assert notes["pairs"] == 92 and "loss on 46 judged pairs of 2 fictional clients" in card  # not on those held aside
    rows = log_of(run)
    assert [r["step"] for r in rows] == [1, 2]


def test_bad_input_is_one_clear_error(base, tmp_path, capsys):
    run = write_run(tmp_path / "run", train=2, test=1)
    assert cli(["rm", str(write_config(tmp_path, run, base, validation_clients=2))]) == 2
    assert "leaves none to train on" in capsys.readouterr().err
    assert cli(["rm", str(write_config(tmp_path, tmp_path / "none", base))]) == 2
    assert "pairs.jsonl: stage rm needs this file" in capsys.readouterr().err
    assert cli(["rm", str(write_config(tmp_path, run, base, learning_rat=1))]) == 2
    assert "unknown key 'learning_rat'" in capsys.readouterr().err


KILLED = """
import os, signal, sys
from reward_model import journal
append = journal.StepLog.append
def append_and_die(self, row):
    append(self, row)
    if row["step"] == 5:
        os.kill(os.getpid(), signal.SIGKILL)
journal.StepLog.append = append_and_die
from psychepass.cli import main
main(["rm", sys.argv[1]])
"""


def test_a_killed_training_goes_on_from_its_last_checkpoint(trained, base, tmp_path):
    """Killed in the second of three epochs; ends with the very weights and log of the run that was not killed."""
    run = write_run(tmp_path / "run")
    config = write_config(tmp_path, run, base)
    env = os.environ | {"PYTHONPATH": ".", "OMP_NUM_THREADS": "1"}  # threads as here: Adam magnifies rounding
    killed = subprocess.run([sys.executable, "-c", KILLED, str(config)], cwd=ROOT, env=env)
    assert killed.returncode == -signal.SIGKILL
    assert last_whole_checkpoint(run / "reward_model" / "checkpoints") is not None
    assert not (run / "reward_model" / models.CARD).exists()
    assert cli(["rm", str(config)]) == 0
    rows, whole = (log_of(r) for r in (run, trained))
    assert [r["step"] for r in rows] == list(range(1, 10))
    for row, other in zip(rows, whole, strict=True):
        assert row["loss"] == pytest.approx(other["loss"], abs=1e-5)
    weights, others = (load_file(r / "reward_model" / "model.safetensors") for r in (run, trained))
    assert max(float((weights[k] - others[k]).abs().max()) for k in others) < 1e-5
    assert records.read_json(run / "manifests" / "rm.json")["starts"] == 2


def test_what_an_unknown_stage_left_is_neither_taken_over_nor_gone_on_from(trained, base, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    manifest = run / "manifests" / "rm.json"
    config = str(write_config(tmp_path, run, base, learning_rate=0.001))
    assert cli(["rm", config]) == 2
    said = capsys.readouterr().err
    assert "learning_rate: was 0.003, is 0.001" in said and "or delete this file and what rm made" in said
    manifest.unlink()  # half of it
    for _ in range(2):
        assert cli(["rm", config]) == 2 and not manifest.exists()
        assert "reward_model.json is there already, and no manifest says" in capsys.readouterr().err
    shutil.rmtree(run / "reward_model")
    assert cli(["rm", config]) == 0 and records.read_json(manifest)["config"]["learning_rate"] == 0.001


def test_a_kill_between_the_models_card_and_the_manifests_notes_loses_no_note(trained, base, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    manifest = run / "manifests" / "rm.json"
    whole = records.read_json(manifest)
    records.write_json(manifest, whole | {"ended": None, "notes": {}})
    assert cli(["rm", str(write_config(tmp_path, run, base))]) == 0
    assert records.read_json(manifest)["notes"] == whole["notes"]


MOVED = """
import os, signal, sys
from reward_model.trainer import PairTrainer
log, accuracies = PairTrainer.log, iter([0.9, 0.5])
def worse(self, logs, start_time=None):
    if "eval_accuracy" in logs:
        logs["eval_accuracy"] = next(accuracies)
    log(self, logs, start_time)
PairTrainer.log = worse
if sys.argv[2] == "die":
    PairTrainer._load_best_model = lambda self: os.kill(os.getpid(), signal.SIGKILL)
from psychepass.cli import main
sys.exit(main(["rm", sys.argv[1]]))
"""


def test_a_run_that_was_moved_while_it_lay_still_keeps_its_best_epoch(base, tmp_path):
    env = os.environ | {"PYTHONPATH": ".", "OMP_NUM_THREADS": "1"}

    def train(run: Path, how: str) -> int:
        config = write_config(tmp_path, run, base, validation_clients=1, epochs=2)
        return subprocess.run([sys.executable, "-c", MOVED, str(config), how], cwd=ROOT, env=env).returncode

    whole, killed = (write_run(tmp_path / name) for name in ("whole", "killed"))
    assert train(whole, "") == 0 and train(killed, "die") == -signal.SIGKILL
    moved = killed.rename(tmp_path / "moved")
    assert train(moved, "") == 0
    notes = [records.read_json(r / "manifests" / "rm.json")["notes"] for r in (whole, moved)]
    assert notes[0] == notes[1] and notes[0]["epoch"] == 1 and notes[0]["validation"] == {"1": 0.9, "2": 0.5}


def test_torn_checkpoints_and_log_lines_are_dropped(tmp_path):
    for name, whole in (("checkpoint-3", True), ("checkpoint-10", True), ("checkpoint-12", False)):
        (tmp_path / name).mkdir()
        if whole:
            (tmp_path / name / "whole").touch()
    found = last_whole_checkpoint(tmp_path)
    assert found is not None and found.name == "checkpoint-10" and not (tmp_path / "checkpoint-12").exists()
    log = StepLog(tmp_path / "log.jsonl")
    for step in range(1, 13):
        log.append({"step": step})
    with log.path.open("a") as f:
        f.write('{"step": 1')
    log.keep_until(10)
    assert [json.loads(line)["step"] for line in log.path.read_text().splitlines()] == list(range(1, 11))

"""The training curves of stage rm: a step's facts by hand, FLOPs by another count, peaks by name, W&B's own file."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from psychepass.config import load as load_config
from psychepass.schema import Dimension
from reward_model import curves, lora
from reward_model import model as models
from reward_model.data import Ask, ClientStep, client_steps, encode_session, join
from reward_model.loss import pair_loss
from reward_model.packing import Packed, pack_sequence
from reward_model.train import RMConfig
from reward_model.trainer import PairTrainer, training_arguments
from tests.benchmarks.measure import Cost
from tests.conftest import ROOT
from tests.made import battle, identity, session
from tests.test_reward_model import log_of, write_config, write_run
from tests.tiny import tiny_model, tiny_tokenizer
from training.pairs import pairs_of
from training.render import Renderer

RENDERER = Renderer(tiny_tokenizer(), 2048, 128)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def trees() -> list[Packed]:
    asks = [Ask(6, Dimension.CRISIS), Ask(6, Dimension.EMPATHY), Ask(10, Dimension.MEMORY)]
    return encode_session(session("p1", identity("a")), asks, RENDERER)[0]


def test_facts_of_a_step_by_hand():
    """Three pairs: crisis right (weight 1) and undecided (weight 3), memory wrong (weight 1)."""
    rewards_S = torch.tensor([2.0, 1.0, 1.0, 0.0])
    step = ClientStep(
        profile_id="p1",
        trees=(pack_sequence((1, 2, 3)), pack_sequence((1, 2))),
        chosen_PS=torch.eye(4)[[0, 1, 3]],
        rejected_PS=torch.eye(4)[[1, 2, 0]],
        weight_P=torch.tensor([1.0, 3.0, 1.0]),
        dimensions=(Dimension.CRISIS, Dimension.CRISIS, Dimension.MEMORY),
    )
    result = pair_loss(rewards_S, step.chosen_PS, step.rejected_PS, step.weight_P, 0.0)
    facts = curves.step_facts(result, rewards_S, step)
    assert facts["accuracy/crisis"] == pytest.approx((1 + 3 / 2) / 4) and facts["accuracy/memory"] == 0.0
    assert facts["accuracy"] == pytest.approx(2.5 / 5) and facts["margin"] == pytest.approx((1 - 2) / 5)
    assert facts["reward_mean"] == 1.0 and facts["reward_std"] == pytest.approx(0.5**0.5)
    assert (facts["pairs"], facts["tokens"]) == (3, 5) and facts["loss"] == pytest.approx(float(result.loss))


def test_speed_has_a_share_of_peak_only_where_the_peak_is_known():
    facts = {"tokens": 50}
    assert curves.step_speed(facts, 0.5, 3e12, None) == {"seconds": 0.5, "tokens_per_second": 100.0}
    assert curves.step_speed(facts, 0.5, 3e12, 12e12)["peak_flops_share"] == 0.5


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA H20", 148),
        ("NVIDIA H200", 989),
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 3060", None),
    ],
)
def test_peaks_by_the_devices_name(name, tera):
    assert curves.peak_of(name) == (None if tera is None else tera * 1e12)


def test_cpu_and_fp32_have_no_peak():
    assert curves.peak_flops(torch.device("cpu"), "bf16") is None
    assert curves.peak_flops(torch.device("cuda"), "fp32") is None


def test_flops_of_a_trained_model_are_three_times_its_forward(base, trees):
    model = models.from_base(base, 2, seed=0)
    whole = curves.training_flops(model, trees)
    assert whole == pytest.approx(3 * Cost(model).trees(trees), rel=1e-12)  # counted there by the mask
    assert curves.training_flops(model, [*trees, *trees]) == 2 * whole


def test_flops_without_what_frozen_weights_do_not_need(base, trees):
    model = models.from_base(base, 2, seed=0)
    forward, linear = Cost(model).trees(trees), 2 * Cost(model).linear * sum(t.tokens for t in trees)
    model.train_top(1)  # of two layers: one goes forward alone
    assert curves.training_flops(model, trees) == pytest.approx(forward / 2 * (1 + 3), rel=1e-12)
    adapted = models.from_base(base, 2, seed=0)
    lora.add(adapted, rank=4, alpha=8, seed=0)
    assert curves.training_flops(adapted, trees) == pytest.approx(3 * forward - linear, rel=1e-12)


def test_a_known_peak_puts_its_share_into_the_log(base, tmp_path):
    config = load_config(RMConfig, write_config(tmp_path, tmp_path, base))
    sides = [session("p1", identity(name)) for name in "ab"]
    steps = client_steps(pairs_of([battle(*sides, "A")], {s.id: s for s in sides}), {s.id: s for s in sides}, RENDERER)
    model = models.from_base(base, 1, seed=0)
    trainer = PairTrainer(config, training_arguments(config, tmp_path, False), tmp_path, model, steps, [])
    assert trainer.peak is None
    trainer.peak = 1e12
    trainer.training_step(model, {"step": join(steps)})
    trainer.begun -= 1  # so that the rounding of seconds does not count
    logs = {"grad_norm": 1.0, "learning_rate": 0.0}
    trainer.log(logs)
    expected = curves.training_flops(model, steps[0].trees) / 1e12 / logs["seconds"]
    assert logs["peak_flops_share"] == pytest.approx(expected, rel=0.01)


def test_wandb_shows_what_the_log_holds(base, tmp_path):
    run = write_run(tmp_path / "run", train=1, test=1)
    config = write_config(tmp_path, run, base, epochs=1)
    command = [sys.executable, "-m", "psychepass.cli", "rm", str(config), "wandb=offline"]
    env = os.environ | {"WANDB_SILENT": "true", "WANDB_PROJECT": "a_project_of_mine"}
    subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True)
    (row,) = log_of(run)
    assert "peak_flops_share" not in row and sum(k.startswith("accuracy/") for k in row) == 11
    (made,) = (run / "reward_model" / "wandb").glob("offline-run-*/run-*.wandb")
    shown = made.read_bytes()
    assert [k for k in row if k != "step" and f"train/{k}".encode() not in shown] == []
    assert b"train/no_such_curve" not in shown and b"a_project_of_mine" in shown

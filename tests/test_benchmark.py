"""The reward model's benchmark, at a size that takes seconds: its figures' form, and what they must say at any size."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from itertools import product
from types import SimpleNamespace

import pytest
import torch

from reward_model import attention
from reward_model.data import ClientStep
from reward_model.loss import bradley_terry
from reward_model.model import RewardModel
from reward_model.packing import pack_sequence
from tests.benchmarks import measure, trl_trainer, workloads
from tests.benchmarks import reward_model as benchmark
from tests.benchmarks.figures import figure
from tests.benchmarks.measure import Cost, Job, compare, sample

SMALL = replace(
    benchmark.QUICK, longest=680, context=64, reply=16, rounds=1, sample=2, training=((2, 2),), scoring=((2, 2),)
)


def test_quick_writes_a_flat_list_of_figures(tmp_path, capsys):
    path = tmp_path / "figures.json"
    assert benchmark.main(["--quick", "--json", str(path)], quick=SMALL) == 0
    figures = json.loads(path.read_text())
    for f in figures:
        assert list(f) == ["name", "value", "low", "high", "n"]
        assert isinstance(f["name"], str) and f["n"] >= 1
        assert all(math.isfinite(f[key]) for key in ("value", "low", "high")) and f["low"] <= f["value"] <= f["high"]
    by_name = {f["name"]: f["value"] for f in figures}
    assert len(by_name) == len(figures)
    full, kept = "client of 12 sessions, 100% of verdicts", "client of 12 sessions, 32% of verdicts"
    assert by_name[f"{full}/pairs"] == 24 * 11 and by_name[f"{kept}/pairs"] == 84
    assert by_name["rewards/error, fp32 ours"] < 1e-5 < by_name["rewards/standard deviation, fp32"]
    naive = "naive, estimated from a sample of 2 trees"
    assert by_name[f"{full}/{naive}/FLOP ratio"] > by_name[f"{kept}/{naive}/FLOP ratio"] > 5
    assert by_name[f"{full}/{naive}/time ratio"] > 0  # of one round, which a busy machine disturbs
    assert any("TRL" in name for name in by_name) == trl_trainer.INSTALLED
    assert ("trl is not installed: skipped" in capsys.readouterr().out) != trl_trainer.INSTALLED


@pytest.mark.skipif(not trl_trainer.INSTALLED, reason="trl is not installed: it comes with the extra dev")
def test_trl_has_the_same_weights_and_computes_the_same_loss():
    model = benchmark.build("tiny", "cpu").eval()
    longest = 1500  # so that every session has words of its own beside its labels
    sessions = workloads.client(workloads.renderer(longest), longest)
    pairs = workloads.swiss_pairs(sessions, 1.0)[:2]
    trainer = trl_trainer.trainer_of(model, pairs, sessions, longest, checkpointing=False)
    for row in trainer.train_dataset:
        loss = trainer.compute_loss(trainer.model, trainer.data_collator([row]))
        rewards = [model(pack_sequence(tuple(row[side]))) for side in ("chosen_ids", "rejected_ids")]
        delta = torch.cat(rewards)[:1] - torch.cat(rewards)[1:]
        assert delta.abs() > 1e-4  # equal rewards would give log 2 whatever the weights
        assert loss.item() == pytest.approx(bradley_terry(delta, torch.ones(1)).item(), abs=1e-6)


def test_bf16_errors_are_measured_against_fp32():
    model = benchmark.build("tiny", "cpu").eval()
    found = {f.name: f for f in benchmark.errors(model, SMALL, torch.bfloat16)}
    exact, ours, naive = (
        found[f"rewards/error, {name}"] for name in ("fp32 ours", "torch.bfloat16 ours", "torch.bfloat16 naive")
    )
    assert exact.high < 1e-5 < ours.value < 2 * naive.high
    assert model.head.weight.dtype == torch.float32


def gradients(model: RewardModel, step: ClientStep, two_pass: bool, recompute: bool) -> torch.Tensor:
    """Of one train_step, which leaves none behind: collected as they arrive."""
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}

    def add(name: str, slope: torch.Tensor) -> None:
        total[name] += slope

    hooks = [p.register_hook(partial(add, name)) for name, p in model.named_parameters()]
    benchmark.train_step(model, step, two_pass, recompute)
    for hook in hooks:
        hook.remove()
    assert all(p.grad is None for p in model.parameters())
    return torch.cat([t.flatten() for t in total.values()])


def test_one_pass_two_passes_and_recomputed_layers_do_the_same_work():
    """What --quick does not run: recomputed layers (full size), and two passes (Qwen3-8B's shape)."""
    model = benchmark.build("tiny", "cpu").eval()
    attention.recompute(model.backbone)
    group = workloads.group(3, 2, context=40, reply=10)
    steps = [group.step(trees) for trees in (group.ours(), group.one_level())]
    found = [gradients(model, steps[0], *how) for how in product((False, True), repeat=2)]
    found.append(gradients(model, steps[1], True, True))
    assert not model.training
    for other in found[1:]:
        assert (other - found[0]).norm() / found[0].norm() < 1e-5


def test_flops_of_the_notes_grid():
    """The notes' FLOP ratios, of a model with another MLP, are met within 3 %."""
    cost = Cost(benchmark.build("small", "cpu"))
    for replies, dimensions, ratio in ((2, 1, 1.74), (2, 4, 6.67), (2, 12, 17.9), (8, 1, 3.95), (8, 12, 34.3)):
        group = workloads.group(replies, dimensions, context=1024, reply=128)
        assert cost.trees(group.naive()) / cost.trees(group.ours()) == pytest.approx(ratio, rel=0.03)


def test_flops_by_hand():
    cost = Cost(benchmark.build("tiny", "cpu"))
    # a layer: queries and output 128 x 128, keys and values 128 x 64, three MLP matrices of 128 x 384
    assert cost.linear == 2 * (2 * 128 * 128 + 2 * 128 * 64 + 3 * 128 * 384)
    # 2 layers, 4 heads of 32, 3 (query, key) pairs of two tokens, 2 products, 2 operations each
    assert cost.sequence(2) == 2 * cost.linear * 2 + 2 * 4 * 32 * 3 * 2 * 2
    assert cost.trees([pack_sequence((1, 2, 3))]) == cost.sequence(3)


def test_sessions_have_the_full_plan_and_spread_lengths():
    render = workloads.renderer(3000)
    sessions = workloads.client(render, 3000)
    tokens = sorted(
        sum(len(render.client(t.client)) + len(render.therapist(t.therapist)) for t in s.turns)
        for s in sessions.values()
    )
    assert len(sessions) == 12 and all(len(s.turns) == 44 for s in sessions.values())
    assert 0.9 * 3000 < tokens[-1] <= 3000 and 0.35 < tokens[0] / tokens[-1] < 0.5
    pairs, twice = (workloads.swiss_pairs(sessions, 1.0, n) for n in (1, 2))
    assert len(twice) == 2 * len(pairs) and set(pairs) <= set(twice)


def test_a_sample_is_scaled_and_says_so(monkeypatch):
    assert sample("abcdef", [6, 5, 4, 3, 2, 1], 2) == ["e", "b"]
    clock = [0.0]

    def takes(seconds):
        clock[0] += seconds

    monkeypatch.setattr(measure, "time", SimpleNamespace(process_time=lambda: clock[0]))
    ours, naive = iter((50.0, 1.0, 2.0, 4.0)), iter((7.0, 2.0, 3.0, 8.0))  # the first round is not counted
    jobs = [
        Job("ours", lambda: takes(next(ours)), 1.0, 1.0),
        Job("naive", lambda: takes(next(naive)), 9.0, 3.0, "4 trees"),
    ]
    found = {f.name: f for f in compare("x", jobs, 3, "cpu")}
    ratio = found["x/naive, estimated from a sample of 4 trees/time ratio"]
    assert ratio.value == 6 and ratio.n == 3  # 6, 4.5, 6
    assert found["x/naive, estimated from a sample of 4 trees/FLOP ratio"].value == 9


def test_a_figure_is_a_median_with_quantiles():
    assert figure("a", [1, 2, 3, 4, 100]) == ("a", 3, pytest.approx(1.4), pytest.approx(61.6), 5)
    assert figure("b", 2) == ("b", 2, 2, 2, 1)

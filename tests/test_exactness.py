"""Packed rewards and gradients against the naive form, in fp64 and fp32, with controls that must fail.

The tolerances are the notes': fp64 1e-12 (with fp64 norms and rotary angles), fp32 rewards 2e-6 and relative
gradient error 1e-5. A control must miss them by a factor of 100 or more.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from psychepass.config import load as load_config
from psychepass.schema import Dimension, PreferencePair, Session, Side
from reward_model import baselines, packing
from reward_model.data import Ask, ClientStep, client_steps, encode_session, join
from reward_model.loss import pair_loss
from reward_model.model import RewardModel, from_base
from reward_model.packing import Packed, blocks, pack_group, pack_sequence
from reward_model.train import RMConfig
from reward_model.trainer import PairTrainer, training_arguments
from tests.made import WORDS, identity, session
from tests.test_reward_model import write_config
from tests.tiny import tiny_model, tiny_tokenizer
from training.pairs import context_of
from training.render import Renderer

FP64, FP32_REWARD, FP32_GRADIENT = 1e-12, 2e-6, 1e-5
WHOLE, WINDOWED = 4096, 220  # budgets: each session one window, or several
MATCHES = [(0, 1), (2, 0)]  # one session is in both


def reply(rng: random.Random, turn: int) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(0, 10)))


SESSIONS = [session("p1", identity(name), reply=reply, words=3) for name in ("a", "b", "c")]
BY_ID = {s.id: s for s in SESSIONS}


def pairs(dimensions: Sequence[Dimension]) -> list[PreferencePair]:
    found = []
    for number, match in enumerate(MATCHES):
        for d in dimensions:
            chosen, rejected = (SESSIONS[i] for i in match)
            found.append(
                PreferencePair(
                    profile_id="p1",
                    split="train",
                    dimension=d,
                    chosen=Side(session=chosen.id, turns=chosen.reply_turns(d)),
                    rejected=Side(session=rejected.id, turns=rejected.reply_turns(d)),
                    battles=(f"battle {number}",),
                    weight=(1.0, 0.5)[number % 2],
                )
            )
    return found


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """So that branches of a dozen tokens make several blocks; a block of all branches: see test_packing."""
    monkeypatch.setattr(packing, "BLOCK", 24)


def render(budget: int) -> Renderer:
    return Renderer(tiny_tokenizer(), budget, 100)


def ours(dimensions: Sequence[Dimension], budget: int) -> ClientStep:
    (step,) = client_steps(pairs(dimensions), BY_ID, render(budget))
    return step


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def base(request, tmp_path_factory) -> Path:
    """Three query heads share a key head."""
    return tiny_model(tmp_path_factory.mktemp("m"), request.param, layers=2, hidden=96, heads=6, kv_heads=2)


@pytest.fixture
def model(base) -> RewardModel:
    """fp32, with a head that spreads rewards by about 0.5."""
    built = from_base(base, layers=None, seed=0).eval()
    torch.nn.init.normal_(built.head.weight, std=0.05, generator=torch.Generator().manual_seed(0))
    return built


@pytest.fixture
def exact(model, monkeypatch) -> RewardModel:
    """The same in fp64 throughout: what transformers and our head and loss cast to fp32 stays fp64."""

    def norm(self, hidden_TH: torch.Tensor) -> torch.Tensor:
        return self.weight * hidden_TH * torch.rsqrt(hidden_TH.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)

    monkeypatch.setattr(Qwen3RMSNorm, "forward", norm)
    monkeypatch.setattr(LlamaRMSNorm, "forward", norm)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    return model.double()


def double(step: ClientStep) -> ClientStep:
    return replace(step, **{name: getattr(step, name).double() for name in ("chosen_PS", "rejected_PS", "weight_P")})


def measured(model: RewardModel, step: ClientStep) -> tuple[torch.Tensor, torch.Tensor]:
    """The rewards of all sides, and the gradient of the pair loss, flat."""
    model.zero_grad()
    rewards_S = torch.cat([model(tree) for tree in step.trees])
    pair_loss(rewards_S, step.chosen_PS, step.rejected_PS, step.weight_P, 0.01).loss.backward()
    return torch.cat([step.chosen_PS, step.rejected_PS]) @ rewards_S.detach(), gradient(model)


def gradient(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def off(found: tuple[torch.Tensor, torch.Tensor], want: tuple[torch.Tensor, torch.Tensor]) -> tuple[float, float]:
    """Largest difference of a reward, relative L2 difference of the gradients."""
    reward, slope = (f - w for f, w in zip(found, want, strict=True))
    return float(reward.abs().max()), float(slope.norm() / want[1].norm())


SHARED = [baselines.naive_once, baselines.one_level]
CASES = [
    ([Dimension.CRISIS], WHOLE),
    ([Dimension.EMPATHY], WINDOWED),
    ([Dimension.MEMORY, Dimension.ENGAGEMENT, Dimension.ETHICS], WINDOWED),
    (list(Dimension), WHOLE),
    (list(Dimension), WINDOWED),
]
IDS = [f"{len(dimensions)}-{budget}" for dimensions, budget in CASES]
cases = pytest.mark.parametrize(("dimensions", "budget"), CASES, ids=IDS)


def test_the_cases_are_ragged_and_have_windows():
    whole, windowed = ours(list(Dimension), WHOLE), ours(list(Dimension), WINDOWED)
    trunks = [t.trunk for t in whole.trees]
    assert len(trunks) == 3 and len(set(trunks)) == 3
    assert all(len(t.blocks) > 3 and len({b.seen for b in t.blocks}) > 3 for t in whole.trees)
    assert len(windowed.trees) > 5


@cases
def test_fp64_rewards_and_gradients_equal_the_naive_form(exact, dimensions, budget):
    want = measured(exact, double(baselines.naive(pairs(dimensions), BY_ID, render(budget))))
    assert want[0].dtype == want[1].dtype == torch.float64 and want[0].std() > 0.01
    assert max(off(measured(exact, double(ours(dimensions, budget))), want)) <= FP64
    for form in SHARED:
        assert max(off(measured(exact, double(form(pairs(dimensions), BY_ID, render(budget)))), want)) <= FP64


@cases
def test_fp32_rewards_and_gradients_equal_the_naive_form(model, dimensions, budget):
    want = measured(model, baselines.naive(pairs(dimensions), BY_ID, render(budget)))
    for step in [ours(dimensions, budget), *(f(pairs(dimensions), BY_ID, render(budget)) for f in SHARED)]:
        reward, slope = off(measured(model, step), want)
        assert reward <= FP32_REWARD and slope <= FP32_GRADIENT


def test_single_rewards_equal_sequences_rendered_apart(exact):
    """Against the renderer alone, without baselines.py, which shares the windows with the packed form."""
    asks = [Ask(turn, d) for d in Dimension for turn in SESSIONS[0].reply_turns(d)]
    trees, order = encode_session(SESSIONS[0], asks, render(WHOLE))
    with torch.no_grad():
        packed = torch.cat([exact(tree) for tree in trees])
        single = torch.cat([exact(sequence(SESSIONS[0], ask)) for ask in order])
    assert (packed - single).abs().max() <= FP64 and single.std() > 0.05


def sequence(side: Session, ask: Ask) -> Packed:
    context = context_of(side, ask.turn)
    return pack_sequence(render(WHOLE).sequence(context, side.turns[ask.turn - 1].therapist, ask.dimension))


def test_one_pass_equals_two_in_fp64(exact, base, tmp_path):
    """Through the trainer's own step, on windows; and both equal the naive form."""
    dimensions, budget = CASES[2]
    packed = double(ours(dimensions, budget))
    apart = double(baselines.naive(pairs(dimensions), BY_ID, render(budget)))
    config = {p: load_config(RMConfig, write_config(tmp_path, tmp_path, base, two_pass=p)) for p in (False, True)}
    found = []
    for step, two_pass in ((packed, False), (packed, True), (apart, True)):
        exact.zero_grad()
        arguments = training_arguments(config[two_pass], tmp_path, validated=False)
        trainer = PairTrainer(config[two_pass], arguments, tmp_path, exact, [step], [])
        trainer.training_step(exact, {"step": join([step])})
        found.append(gradient(exact))
    assert found[0].dtype == torch.float64
    for other in found[1:]:
        assert (other - found[0]).norm() / found[0].norm() <= FP64


def test_fp64_groups_equal_the_naive_form(exact):
    """Ragged replies, one longer than a block; 1 to 12 dimensions; rewards and gradients."""
    ask = render(WHOLE)
    context = ask.context(context_of(SESSIONS[0], 6))
    replies = [ask.response(" ".join(WORDS[:n])) for n in (30, 3, 0)]
    weight_S = torch.randn(36, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for dimensions in ([Dimension.CRISIS], list(Dimension)):
        suffixes = [ask.dimension(d) for d in dimensions]
        found = []
        group = pack_group(context, replies, suffixes)
        assert len(group.blocks) > 1 and group.blocks[0].stop > packing.BLOCK
        for trees in ([group], [pack_sequence(context + r + s) for r in replies for s in suffixes]):
            exact.zero_grad()
            rewards_S = torch.cat([exact(tree) for tree in trees])
            (weight_S[: len(rewards_S)] @ rewards_S).backward()
            found.append((rewards_S.detach(), gradient(exact)))
        assert max(off(*found)) <= FP64 and found[0][0].std() > 0.01


def plain_causal(tree: Packed) -> Packed:
    n = len(tree.seen_B)
    seen, ends = [tree.trunk] * n, [n] * n
    return replace(tree, seen_B=torch.tensor(seen), end_B=torch.tensor(ends), blocks=blocks(seen, ends))


def running_positions(tree: Packed) -> Packed:
    return replace(tree, position_ids_T=torch.arange(tree.tokens))


@pytest.mark.parametrize("spoil", [plain_causal, running_positions])
@pytest.mark.parametrize(("dimensions", "budget"), CASES[1:], ids=IDS[1:])
def test_a_spoiled_tree_is_far_outside(model, dimensions, budget, spoil: Callable[[Packed], Packed]):
    """Wrong masks or positions must show, by 100 times the looser tolerances: else the tests above prove nothing.

    (The first case has one branch at the trunk's end, which is a plain sequence: there is nothing to spoil.)
    """
    step = ours(dimensions, budget)
    spoiled = replace(step, trees=tuple(spoil(t) for t in step.trees))
    reward, slope = off(measured(model, spoiled), measured(model, step))
    assert reward > 100 * FP32_REWARD and slope > 100 * FP32_GRADIENT

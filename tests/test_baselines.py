"""The baseline forms: known layouts and rewards, and that each learns behind the same loss."""

from __future__ import annotations

import pytest
import torch

from psychepass.config import load as load_config
from psychepass.schema import Dimension
from reward_model import baselines
from reward_model.model import from_base
from reward_model.packing import pack_sequence
from reward_model.train import RMConfig
from reward_model.trainer import PairTrainer, training_arguments
from tests.made import battle, identity, session
from tests.test_reward_model import curt, kind, write_config
from tests.tiny import tiny_model, tiny_tokenizer
from training.pairs import context_of, pairs_of
from training.render import Renderer

RENDER = Renderer(tiny_tokenizer(), 4096, 100)
SIDES = [
    session("p1", identity("kind"), reply=kind, words=3),
    session("p1", identity("curt"), reply=curt, words=3),
    session("p1", identity("curt2"), reply=curt, words=3, seed=1),
]
BY_ID = {s.id: s for s in SIDES}
PAIRS = pairs_of([battle(SIDES[0], SIDES[1], "A"), battle(SIDES[2], SIDES[0], "B")], BY_ID)
# a session's rewards: 5 turns stand for each of two global dimensions, one turn for each of nine local ones
READ, TURNS = 2 * 5 + 9, 11


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("m"), layers=1)


@pytest.mark.parametrize(
    ("form", "trees", "rewards"),
    [
        (baselines.naive, 2 * 2 * READ, 2 * 2 * READ),
        (baselines.naive_once, 3 * READ, 3 * READ),
        (baselines.one_level, 3 * TURNS, 3 * READ),
        (baselines.dimension_first, 3 * 11, 3 * READ),
        (baselines.twelve_outputs, 3, 3 * TURNS * 12),
    ],
)
def test_how_many_trees_and_rewards_a_form_has(form, trees, rewards):
    step = form(PAIRS, BY_ID, RENDER)
    assert len(PAIRS) == 22 and len(step.trees) == trees
    assert sum(len(t.score_index_S) for t in step.trees) == step.chosen_PS.shape[1] == rewards
    for matrix_PS in (step.chosen_PS, step.rejected_PS):
        assert torch.allclose(matrix_PS.sum(1), torch.ones(22))
    assert not (step.chosen_PS * step.rejected_PS).any()


def test_each_pair_reads_its_own_rewards_of_twelve_outputs(base):
    """The chosen side of every pair against the outputs of its own replies' last tokens, one sequence each."""
    model = baselines.with_twelve_outputs(from_base(base, None, seed=0), seed=1).eval()
    step = baselines.twelve_outputs(PAIRS, BY_ID, RENDER)
    with torch.no_grad():
        found_P = step.chosen_PS @ torch.cat([model(tree) for tree in step.trees])
        for pair, found in zip(PAIRS, found_P, strict=True):
            side = BY_ID[pair.chosen.session]
            want = []
            for turn in pair.chosen.turns:
                ids = RENDER.context(context_of(side, turn)) + RENDER.response(side.turns[turn - 1].therapist)
                hidden_TH = model.hidden(pack_sequence(ids))
                want.append(model.head.weight[list(Dimension).index(pair.dimension)] @ hidden_TH[-1])
            assert abs(found - sum(want) / len(want)) <= 2e-6


def test_each_pair_reads_its_own_rewards_dimension_first(base):
    model = from_base(base, None, seed=0).eval()
    step = baselines.dimension_first(PAIRS, BY_ID, RENDER)
    with torch.no_grad():
        found_P = step.rejected_PS @ torch.cat([model(tree) for tree in step.trees])
        for pair, found in zip(PAIRS, found_P, strict=True):
            side = BY_ID[pair.rejected.session]
            want = []
            for turn in pair.rejected.turns:
                said = RENDER.context(context_of(side, turn)) + RENDER.response(side.turns[turn - 1].therapist)
                want.append(model(pack_sequence(RENDER.dimension(pair.dimension) + said)))
            assert abs(found - sum(want) / len(want)) <= 2e-6


@pytest.mark.parametrize("form", [baselines.one_level, baselines.dimension_first, baselines.twelve_outputs])
def test_a_form_learns_in_the_trainer(base, tmp_path, form):
    """Pairs whose chosen therapist is always the same: learned on two clients, tested on a third."""
    torch.manual_seed(0)
    pairs, by_id = [], {}
    for client in ("p1", "p2", "p3"):
        a, b = session(client, identity("kind"), reply=kind), session(client, identity("curt"), reply=curt)
        by_id |= {a.id: a, b.id: b}
        pairs += pairs_of([battle(a, b, "A")], by_id)
    model = from_base(base, None, seed=0)
    if form is baselines.twelve_outputs:
        model = baselines.with_twelve_outputs(model, seed=1)
    steps = baselines.steps(form, pairs, by_id, RENDER)
    assert [s.profile_id for s in steps] == ["p1", "p2", "p3"]
    config = load_config(RMConfig, write_config(tmp_path, tmp_path, base, epochs=8, two_pass=True))
    arguments = training_arguments(config, tmp_path, validated=True)
    trainer = PairTrainer(config, arguments, tmp_path, model, steps[:2], steps[2:])
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_accuracy"] >= 0.9 and after["eval_loss"] < before["eval_loss"]

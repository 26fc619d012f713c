"""The benchmark of the three ways to tell the reward model the dimension: cached states are exact, all forms learn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from psychepass.config import load
from psychepass.schema import PreferencePair, Session
from reward_model import baselines
from reward_model import model as models
from reward_model.train import RMConfig
from tests.benchmarks import conditioning
from tests.made import battle, identity, session
from tests.test_reward_model import curt, kind, write_config
from tests.tiny import tiny_model, tiny_tokenizer
from training.pairs import REWARDED, pairs_of
from training.render import Renderer

RENDERER = Renderer(tiny_tokenizer(), 2048, 128)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("base"))


def by_dimension(clients: int, split: str) -> tuple[list[PreferencePair], dict[str, Session]]:
    """The judge prefers one therapist on every second dimension and the other one on the rest."""
    sessions, battles = {}, []
    for number in range(clients):
        sides = [session(f"{split}{number}", identity(n), split, reply=r) for n, r in (("kind", kind), ("curt", curt))]
        sessions |= {s.id: s for s in sides}
        battles.append(battle(*sides, {d: "AB"[i % 2] for i, d in enumerate(REWARDED)}))
    return pairs_of(battles, sessions), sessions


@pytest.mark.parametrize("form", list(conditioning.FORMS))
def test_states_computed_once_give_the_whole_models_rewards(form: str, base: Path) -> None:
    pairs, sessions = by_dimension(1, "train")
    (step,) = conditioning.FORMS[form](pairs, sessions, RENDERER)
    twelve = form == conditioning.TWELVE
    whole = models.from_base(base, 2, seed=3)
    whole = baselines.with_twelve_outputs(whole, 3) if twelve else whole
    data = conditioning.cut([step], conditioning.lower_layers(base, 1))
    upper = conditioning.upper_layers(base, 2, frozen=1, seed=3, twelve=twelve)
    conditioning.reads(upper, data.states_NH)
    with torch.inference_mode():
        expected, found = (
            torch.cat([m.eval()(t) for t in s.trees]) for m, s in ((whole, step), (upper, data.steps[0]))
        )
    assert torch.allclose(found, expected, atol=1e-6) and expected.std() > 1e-3


@pytest.mark.parametrize("form", list(conditioning.FORMS))
def test_every_form_learns_what_depends_on_the_dimension(form: str, base: Path, tmp_path: Path) -> None:
    """A model that did not know the dimension would rank half of the pairs."""
    lower = conditioning.lower_layers(base, 1)
    data, held = (conditioning.cut(conditioning.FORMS[form](*by_dimension(n, s), RENDERER), lower)
                  for n, s in ((4, "train"), (2, "test")))  # fmt: skip
    config = load(RMConfig, write_config(tmp_path, tmp_path, base, layers=2, epochs=10, learning_rate=0.01))
    model = conditioning.upper_layers(base, 2, frozen=1, seed=0, twelve=form == conditioning.TWELVE)
    assert np.mean(list(conditioning.shares(model, held).values())) < 0.8
    found = conditioning.shares(conditioning.train(config, model, data, tmp_path), held)
    assert len(found) == 2 and np.mean(list(found.values())) > 0.8


def test_figures_by_hand() -> None:
    suffix, other = np.array([[0.5, 0.7], [0.7, 0.9]]), np.array([[0.5, 0.5], [0.5, 0.7]])
    rows = {f.name: f for f in conditioning.of_form("suffix", suffix)}
    assert rows["suffix/accuracy"].value == pytest.approx(0.7) and rows["suffix/accuracy"].n == 2
    assert rows["suffix/accuracy, seed 1"].value == pytest.approx(0.8)
    found = {
        f.name: f
        for f in conditioning.differences({"suffix": suffix, "dimension first": other, "12-output head": suffix})
    }
    assert found["suffix - dimension first/accuracy"].value == pytest.approx(0.15)
    assert found["suffix - 12-output head/accuracy"].value == 0.0


def test_quick_writes_a_flat_list_of_figures(tmp_path: Path, capsys) -> None:
    path = tmp_path / "figures.json"
    assert conditioning.main(["--quick", "--epochs", "1", "--seeds", "2", "--json", str(path)]) == 0
    assert "these numbers mean nothing" in capsys.readouterr().out
    found = {f["name"]: f for f in json.loads(path.read_text())}
    for form in conditioning.FORMS:
        assert 0 <= found[f"{form}/accuracy"]["low"] <= found[f"{form}/accuracy"]["value"] <= 1
        assert found[f"{form}/accuracy"]["n"] == 2
    assert found["suffix - dimension first/accuracy"]["low"] is None  # two clients bound nothing
    assert found["dimension first/tokens an epoch"]["value"] > 3 * found["suffix/tokens an epoch"]["value"]
    assert found["test pairs"]["value"] == 2 * (11 + 11 + 1)
    assert {"longer reply/accuracy", "which therapist/accuracy"} <= found.keys()

"""The shipped configs fit each other: what one stage's config makes, the next one's finds."""

from __future__ import annotations

import pytest

from psychepass.config import load
from psychepass.splits import Splits
from reward_model.train import RMConfig
from rollout_env.profile_work import ProfilesConfig
from rollout_env.simulate import SimulateConfig
from rollout_env.therapist import TherapistEntry
from tests.conftest import ROOT
from tournament.heldout_setup import HeldoutConfig
from tournament.run import TournamentConfig
from training.build import DataConfig

CONFIGS = ROOT / "configs"
# simulate, tournament, data, heldout
CHAINS = [
    ("simulate", "tournament", "data", "heldout"),
    ("simulate", "tournament-llm", "data", "heldout"),
    ("endpoints", "tournament-llm", "data", "heldout"),
    ("paper-clients", "tournament-llm", "data", "heldout-llm"),
    ("quickstart/simulate", "quickstart/tournament", "quickstart/data", "quickstart/heldout"),
]


def but_for(entry: TherapistEntry, *fields: str) -> dict:
    return entry.model_dump(exclude=set(fields))


@pytest.mark.parametrize("names", CHAINS, ids=lambda names: names[0])
def test_base_and_its_repeat_meet_the_dev_clients_and_differ_in_seed_alone(names: tuple[str, str, str, str]) -> None:
    of_simulate, of_tournament, of_data, of_heldout = (CONFIGS / f"{name}.yaml" for name in names)
    simulate, tournament = load(SimulateConfig, of_simulate), load(TournamentConfig, of_tournament)
    data, heldout = load(DataConfig, of_data), load(HeldoutConfig, of_heldout)
    entries = {t.name: t for t in simulate.therapists}
    assert {tournament.base, tournament.base_repeat} <= set(simulate.meets["dev"])
    base, repeat = entries[tournament.base], entries[tournament.base_repeat]
    assert but_for(base, "name", "seed") == but_for(repeat, "name", "seed") and base.seed != repeat.seed
    # prompts for RL are the base's own turns with train and dev clients
    assert data.base == tournament.base and {data.base} <= set(simulate.meets["train"]) & set(simulate.meets["dev"])
    assert (data.model, data.prompt) == (base.weights, base.prompt)
    assert heldout.base == base


@pytest.mark.parametrize("name", ["rm", "quickstart/rm"])
def test_validation_leaves_most_of_the_clients_to_train_on(name: str) -> None:
    held = load(RMConfig, CONFIGS / f"{name}.yaml").validation_clients
    shipped, made = load(Splits, CONFIGS / "splits.yaml"), load(ProfilesConfig, CONFIGS / "profiles.yaml")
    assert all(held <= n / 4 for n in (len(shipped.train), made.sets["train"]))

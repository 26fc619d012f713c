"""The shipped pool: every Appendix A field, adults, spread, and the four sets."""

from collections import Counter

import pytest

from psychepass import records
from psychepass.config import load
from psychepass.errors import UserError
from psychepass.splits import Splits
from rollout_env.profiles import ADULT_YEARS, TOPICS, load_profiles
from rollout_env.script_lint import lint_profile
from tests.conftest import ROOT

POOL = load_profiles()
SPLITS = load(Splits, ROOT / "configs" / "splits.yaml")
PAPER_EMOTIONS = {"depression", "anxiety", "fear", "anger", "positive"}
PAPER_REACTIONS = {
    "Help-seeking & Confused",
    "Emotional Venting",
    "Relationship Exploring",
    "Philosophical Reflection",
    "Trauma Narration",
    "Habit Changer",
}


def test_pool_has_32_adults_with_every_field():
    assert len(POOL) == 32
    for profile in POOL.values():
        empty = [k for k, v in profile.model_dump().items() if v in ("", (), [], {})]
        assert not empty, (profile.profile_id, empty)
        assert profile.age >= ADULT_YEARS
        assert not profile.human_verified
        assert len(profile.facts) >= 3


def test_sets_are_10_6_8_8_and_cover_the_pool():
    of = SPLITS.of()
    assert Counter(of.values()) == {"train": 10, "test": 6, "dev": 8, "heldout": 8}
    assert set(of) == set(POOL)


def test_pool_and_each_set_are_spread():
    assert {p.topic for p in POOL.values()} == set(TOPICS)
    assert {p.emotion for p in POOL.values()} >= PAPER_EMOTIONS
    assert {p.reaction_pattern.name for p in POOL.values()} >= PAPER_REACTIONS
    for ids in (SPLITS.train, SPLITS.test, SPLITS.dev, SPLITS.heldout):
        some = [POOL[i] for i in ids]
        assert len({p.topic for p in some}) >= 6
        assert len({p.emotion for p in some}) >= 3
        assert {p.gender for p in some} >= {"female", "male"}
        assert max(p.age for p in some) - min(p.age for p in some) >= 25


def test_names_and_occupations_are_all_different():
    assert len({p.name for p in POOL.values()}) == 32
    assert len({p.occupation for p in POOL.values()}) == 32


def test_no_profile_names_a_method():
    assert [f for p in POOL.values() for f in lint_profile(p)] == []


def test_a_method_in_a_profile_is_found():
    profile = next(iter(POOL.values())).model_copy(update={"situation": "Reads a leaflet on overdose prevention."})
    assert "overdose" in lint_profile(profile)[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"age": 17}, r"line 2, profile 'b': age is 17; permitted: 18 or more"),
        ({"topic": "Weather"}, r"topic is 'Weather'; permitted: Romantic"),
        ({"profile_id": "a"}, r"profile_id stands twice"),
    ],
)
def test_bad_profiles_are_refused(tmp_path, change, message):
    first = next(iter(POOL.values())).model_copy(update={"profile_id": "a"})
    second = first.model_copy(update={"profile_id": "b"} | change)
    records.write(tmp_path / "profiles.jsonl", [first, second])
    with pytest.raises(UserError, match=message):
        load_profiles(tmp_path / "profiles.jsonl")

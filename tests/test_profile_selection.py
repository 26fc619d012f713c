"""Near-duplicates, strata and the draw: known answers, and rules that hold for every pool."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psychepass.errors import UserError
from psychepass.schema import Profile
from psychepass.splits import SPLITS, shared_runs
from rollout_env.profile_records import Scores
from rollout_env.profile_selection import (
    BANDS,
    band_of,
    draw,
    interleaved,
    jaccard,
    near_duplicates,
    quotas,
    shingles,
)
from rollout_env.profile_sources import profile_text
from rollout_env.profiles import TOPICS, load_profiles

BASE = next(iter(load_profiles().values()))
SIZES = {"train": 6, "test": 3, "dev": 3, "heldout": 12}
PAPER_SHARES = {
    "Romantic Relationships": 0.20,
    "Interpersonal Relations": 0.15,
    "Emotional Distress": 0.14,
    "Personal Growth": 0.13,
    "Family Relations": 0.12,
}


def client(number: int, topic: str, said: str = "") -> Profile:
    """A profile whose long texts are its own; `said` is a text that another may share."""
    own = [f"{word}{number}" for word in ("river", "lamp", "stone", "cloud", "fern", "bread", "door", "sail", "moss")]
    empty = {"facts": {"one": said or "none"}, "event": {"time": "now", "location": "here", "participants": ("I",)}}
    change = {"profile_id": f"c-{number}", "topic": topic, "situation": " ".join(own), "formative_experiences": []}
    change["formative_experiences"] = [{"age": 9, "event": f"e {number}", "belief": f"b {number}"}]
    plain = {"personality": ["calm"], "social_support": [], "core_drive": {"name": "d", "description": str(number)}}
    plain["reaction_pattern"] = {"name": "r", "description": str(number)}
    return Profile.model_validate(BASE.model_dump(exclude={"id"}) | empty | change | plain)


def scored(intensity: int = 3, complexity: int = 3, relevance: int = 3) -> Scores:
    return Scores(
        linguistic_complexity=complexity,
        emotional_intensity=intensity,
        counselling_relevance=relevance,
        romantic_or_sexual=False,
    )


# --- near-duplicates --------------------------------------------------------------------------------


def test_the_similarity_of_two_words_by_hand():
    """abcdefg has the 5-grams abcde, bcdef, cdefg; abcdefh shares two of four."""
    assert shingles("AbcdEfg") == {"abcde", "bcdef", "cdefg"}
    assert jaccard(shingles("abcdefg"), shingles("abcdefh")) == 2 / 4
    assert shingles("abc") == {"abc"} and shingles("a\n  b") == {"a b"}


ENGLISH = "Since the spring I keep arguing with my sister about the house that our parents left to both of us."
CHINESE = "自从春天以来，我一直和姐姐为了父母留给我们两个人的房子争吵，谁也不愿意先开口道歉。"


@pytest.mark.parametrize("text", [ENGLISH, CHINESE])
def test_a_text_with_one_word_changed_is_dropped_for_the_first_and_another_is_kept(text: str):
    changed = text.replace("spring", "summer").replace("春天", "夏天")
    assert changed != text
    texts = {"a": text, "b": changed, "c": text[::-1], "d": text}
    found = {d.dropped: (d.kept, d.similarity) for d in near_duplicates(texts, 0.5, "seeds")}
    assert found == {"b": ("a", round(jaccard(shingles(text), shingles(changed)), 4)), "d": ("a", 1.0)}
    assert near_duplicates(texts, 1.0, "seeds")[0].dropped == "d" and not near_duplicates({"a": text}, 0.1, "seeds")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.text(alphabet="abc 天地人", min_size=5, max_size=30), min_size=1, max_size=12))
def test_what_is_dropped_is_as_alike_as_it_says_and_its_like_is_kept(texts: list[str]):
    by_id = {str(i): t for i, t in enumerate(texts)}
    found = near_duplicates(by_id, 0.7, "profiles")
    dropped = {d.dropped for d in found}
    for d in found:
        similarity = jaccard(shingles(by_id[d.dropped]), shingles(by_id[d.kept]))
        assert d.kept not in dropped and int(d.kept) < int(d.dropped)
        assert similarity >= 0.7 and d.similarity == round(similarity, 4)
    kept = [t for i, t in by_id.items() if i not in dropped]
    assert len({" ".join(t.lower().split()) for t in kept}) == len(kept)  # equal texts are always found


# --- strata -----------------------------------------------------------------------------------------


def test_quotas_by_hand():
    """33 of 11 equal topics in 3 bands: one each. The paper's shares of 200 without low intensity: 20 + 20 of the
    first topic (20 %), and the six topics not named share 26 %: 52 in twelve strata, 4 or 5 each."""
    assert set(quotas(33, {}, 1).values()) == {1}
    found = quotas(200, PAPER_SHARES, 3)
    assert found["Romantic Relationships", "high"] == found["Romantic Relationships", "moderate"] == 20
    assert {b for _, b in found} == {"moderate", "high"} and sum(found.values()) == 200
    rest = [n for (t, _), n in found.items() if t not in PAPER_SHARES]
    assert len(rest) == 12 and set(rest) == {4, 5} and sum(rest) == 52


@pytest.mark.parametrize(
    ("shares", "told"),
    [
        ({"Weather": 0.5}, "topic_shares names Weather; permitted: Romantic Relationships, "),
        ({"Trauma": 0.7, "Career": 0.6}, "topic_shares add up to 1.3; permitted"),
        ({"Trauma": -0.1}, "permitted: shares from 0"),
        (dict.fromkeys(TOPICS, 0.05), "topic_shares add up to 0.55; permitted"),
    ],
)
def test_shares_that_cannot_be_are_refused(shares: dict[str, float], told: str):
    with pytest.raises(UserError, match=told):
        quotas(10, shares, 1)


@given(st.integers(0, 300), st.lists(st.floats(0, 0.18), max_size=5), st.integers(1, 5))
def test_quotas_add_up_and_no_stratum_is_more_than_one_from_its_share(n: int, given_: list[float], least: int):
    shares = dict(zip(TOPICS, given_, strict=False))
    found = quotas(n, shares, least)
    bands = [b for b, (_, high) in BANDS.items() if high >= least]
    rest = (1 - sum(shares.values())) / (len(TOPICS) - len(shares))
    assert sum(found.values()) == n
    assert all(abs(k - n * shares.get(t, rest) / len(bands)) < 1 + 1e-6 for (t, _), k in found.items())


@given(st.fixed_dictionaries(dict.fromkeys(SPLITS, st.integers(0, 40))))
def test_sets_are_interleaved_evenly(sizes: dict[str, int]):
    order = interleaved(sizes)
    assert Counter(order) == Counter({s: n for s, n in sizes.items() if n})
    for n in range(len(order)):
        so_far = Counter(order[:n])
        assert all(abs(so_far[s] - sizes[s] * n / len(order)) < len(SPLITS) for s in sizes)


def test_bands_cover_the_scale():
    assert [band_of(i) for i in range(1, 6)] == ["low", "low", "moderate", "high", "high"]


# --- the draw ---------------------------------------------------------------------------------------


def test_the_best_of_a_stratum_come_first_and_a_short_one_is_told_not_filled():
    pool = [(client(i, "Trauma"), scored(3, complexity=1 + i % 5)) for i in range(10)]
    drawn = draw(pool, {"train": 2, "test": 0, "dev": 0, "heldout": 2}, {"Trauma": 1.0}, 3, fill=False, seed=0)
    # two of four are due to the band `high`, where nobody is
    assert {s.quality for s in drawn.selected} == {round((5 + 3 + 3) / 3, 4)} and len(drawn.selected) == 2
    assert drawn.short == {("Trauma", "high"): 2} and not any(s.filled for s in drawn.selected)
    filled = draw(pool, {"train": 2, "test": 0, "dev": 0, "heldout": 2}, {"Trauma": 1.0}, 3, fill=True, seed=0)
    assert Counter(s.split for s in filled.selected) == {"train": 2, "heldout": 2}
    assert filled.short == drawn.short and sum(s.filled for s in filled.selected) == 2


def test_a_profile_that_shares_eight_words_with_the_other_side_is_passed_over():
    said = "I left the key under the blue pot again"
    a, b, c = (client(i, "Trauma", said if i < 2 else "") for i in range(3))
    pool = [(a, scored(3, 5)), (b, scored(3, 4)), (c, scored(3, 1))]
    sizes = {"train": 1, "test": 0, "dev": 0, "heldout": 1}
    drawn = draw(pool, sizes, {"Trauma": 1.0}, 5, fill=True, seed=0)  # band high is empty: all places are filled
    ids = {s.profile_id for s in drawn.selected}
    assert ids == {"c-0", "c-2"} and drawn.passed_over == {"c-1": "c-0"}
    alone = draw(pool[:2], sizes, {"Trauma": 1.0}, 5, fill=True, seed=0)
    assert len(alone.selected) == 1  # rather one client less than eight words shared
    same_side = draw(pool[:2], {"train": 2, "test": 0, "dev": 0, "heldout": 0}, {"Trauma": 1.0}, 5, True, 0)
    assert len(same_side.selected) == 2 and not same_side.passed_over


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(TOPICS[:4]), st.integers(1, 5), st.integers(0, 4)), max_size=40),
    st.booleans(),
    st.integers(0, 5),
)
def test_rules_that_hold_for_every_pool(rows: list[tuple[str, int, int]], fill: bool, seed: int):
    """Nobody twice, no set too large, no eight words shared; the same again for the same seed in any order."""
    said = ["", "one two three four five six seven eight", "a b c d e f g h i j", "", ""]
    pool = [(client(i, topic, said[k]), scored(n)) for i, (topic, n, k) in enumerate(rows)]
    drawn = draw(pool, SIZES, {}, 1, fill, seed)
    ids = [s.profile_id for s in drawn.selected]
    sizes = Counter(s.split for s in drawn.selected)
    assert len(set(ids)) == len(ids) and all(sizes[s] <= n for s, n in SIZES.items())
    missing = sum(SIZES.values()) - len(ids) + sum(s.filled for s in drawn.selected)
    assert sum(drawn.short.values()) == missing
    of = {s.profile_id: s.split == "heldout" for s in drawn.selected}
    held, rest = (
        [t for p, _ in pool if of.get(p.profile_id) is side for t in profile_text(p).split("\n")]
        for side in (True, False)
    )
    assert not shared_runs(held, rest)
    assert draw(list(reversed(pool)), SIZES, {}, 1, fill, seed) == drawn
    wanted = quotas(sum(SIZES.values()), {}, 1)
    taken = Counter((s.topic, s.intensity) for s in drawn.selected if not s.filled)
    assert all(taken[s] + drawn.short.get(s, 0) == n for s, n in wanted.items())

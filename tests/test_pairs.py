"""Which verdicts become pairs, which turns stand for a dimension, and byte-equality when made again."""

from __future__ import annotations

import random

import pytest
from datasets import Dataset

from psychepass import records
from psychepass.errors import UserError
from psychepass.schema import Dimension
from tests.made import JUDGE, LLM_JUDGE, battle, identity, session
from training.pairs import REWARDED, context_of, pairs_of, preference_rows

A, B, C = (session("p1", identity(n)) for n in "abc")
SESSIONS = {s.id: s for s in (A, B, C)}
OTHER_JUDGE = LLM_JUDGE.model_copy(update={"name": "second"})


def test_one_pair_a_decided_dimension_but_never_diversity():
    pairs = pairs_of([battle(A, B, "A")], SESSIONS)
    assert [p.dimension for p in pairs] == list(REWARDED)
    assert Dimension.DIVERSITY not in REWARDED and len(REWARDED) == 11
    assert {(p.chosen.session, p.rejected.session) for p in pairs} == {(A.id, B.id)}


def test_ties_are_dropped():
    pairs = pairs_of([battle(A, B, {Dimension.CRISIS: "B"})], SESSIONS)
    assert [(p.dimension, p.chosen.session) for p in pairs] == [(Dimension.CRISIS, B.id)]


def test_turns_are_the_probes_or_the_last_of_each_phase():
    turns = {p.dimension: p.chosen.turns for p in pairs_of([battle(A, B, "A")], SESSIONS)}
    assert turns[Dimension.CRISIS] == (6,)
    assert turns[Dimension.MEMORY] == (10,)
    assert turns[Dimension.EMPATHY] == turns[Dimension.ENGAGEMENT] == (2, 4, 7, 9, 11)


def test_both_orders_must_agree():
    agree = [battle(A, B, "A", LLM_JUDGE), battle(B, A, "B", LLM_JUDGE)]
    differ = [battle(A, B, "A", LLM_JUDGE), battle(B, A, "A", LLM_JUDGE)]
    tie = [battle(A, B, "A", LLM_JUDGE), battle(B, A, "tie", LLM_JUDGE)]
    assert len(pairs_of(agree, SESSIONS)) == 11
    assert pairs_of(differ, SESSIONS) == pairs_of(tie, SESSIONS) == []
    assert pairs_of(agree[:1], SESSIONS) == []
    assert set(pairs_of(agree, SESSIONS)[0].battles) == {b.id for b in agree}


def test_an_order_free_judge_counts_once():
    once = pairs_of([battle(A, B, "A", JUDGE)], SESSIONS)
    assert len(once) == 11 and {p.weight for p in once} == {1.0}


@pytest.mark.parametrize(
    ("second", "third", "weight"),
    [("A", "A", 1.0), ("A", "tie", 2 / 3), ("tie", "tie", 1 / 3), ("A", "B", 2 / 3)],
)
def test_weight_is_the_share_of_judges_that_agreed(second, third, weight):
    judges = [JUDGE.model_copy(update={"name": f"judge{i}"}) for i in range(3)]
    battles = [battle(A, B, w, j) for w, j in zip(("A", second, third), judges, strict=True)]
    pairs = pairs_of(battles, SESSIONS)
    assert {p.weight for p in pairs} == {weight} and pairs[0].chosen.session == A.id


def test_judges_that_cancel_out_make_no_pair():
    assert pairs_of([battle(A, B, "A"), battle(A, B, "B", JUDGE.model_copy(update={"name": "other"}))], SESSIONS) == []


def test_pairs_are_byte_equal_in_any_order_of_battles():
    battles = [battle(A, B, "A"), battle(C, A, "B"), battle(B, C, {Dimension.ETHICS: "A"})]
    lines = [records.dumps(p) for p in pairs_of(battles, SESSIONS)]
    for seed in range(5):
        random.Random(seed).shuffle(battles)
        shuffled = dict(random.Random(seed).sample(list(SESSIONS.items()), 3))
        assert [records.dumps(p) for p in pairs_of(battles, shuffled)] == lines
    assert len(lines) == len(set(lines)) == 23


def test_a_swapped_presentation_gives_the_same_pairs():
    def sides(battles):
        return [(p.dimension, p.chosen, p.rejected) for p in pairs_of(battles, SESSIONS)]

    assert sides([battle(A, B, "A")]) == sides([battle(A, B, "A").swapped()])


def test_bad_battles_are_refused():
    dev = session("p9", identity("a"), split="dev"), session("p9", identity("b"), split="dev")
    with pytest.raises(UserError, match="split 'dev'; pairs are made of train and test only"):
        pairs_of([battle(*dev, "A")], {s.id: s for s in dev})
    with pytest.raises(UserError, match="not among the 1 sessions"):
        pairs_of([battle(A, B, "A")], {A.id: A})
    stranger = session("p2", identity("b"))
    with pytest.raises(UserError, match=r"profiles \['p1', 'p2'\]"):
        pairs_of([battle(A, stranger, "A")], {s.id: s for s in (A, stranger)})


def test_context_ends_with_the_client():
    messages = context_of(A, 3)
    assert [m.role for m in messages] == ["user", "assistant", "user", "assistant", "user"]
    assert messages[-1].content == A.turns[2].client
    with pytest.raises(UserError, match="no turn 12"):
        context_of(A, 12)


def test_export_loads_as_conversational_preferences():
    pairs = pairs_of([battle(A, B, {Dimension.CRISIS: "A", Dimension.EMPATHY: "B"})], SESSIONS)
    data = Dataset.from_list(list(preference_rows(pairs, SESSIONS)))
    assert len(data) == 6 and {*data.column_names} >= {"chosen", "rejected", "weight"}
    assert sum(data["weight"]) == pytest.approx(2.0)
    row = next(r for r in data if r["dimension"] == "crisis")
    assert row["chosen"][0] == {"role": "system", "content": "Quality, crisis"}
    assert row["chosen"][-1] == {"role": "assistant", "content": A.turns[5].therapist}
    assert row["rejected"][-1]["content"] == B.turns[5].therapist

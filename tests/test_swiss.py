"""Swiss pairing on rounds made by hand."""

from __future__ import annotations

from collections import Counter

import pytest

from tournament.swiss import Round, Standings, pair, rounds_for


def standings(points: dict[str, float], met: list[str] | None = None, byes: dict[str, int] | None = None) -> Standings:
    """`met` names pairs of one-letter contestants: "ab" have met once."""
    return Standings(dict(points), Counter(frozenset(m) for m in met or []), Counter(byes or {}))


def pairs(round_: Round) -> set[frozenset[str]]:
    return {frozenset(p) for p in round_.pairs}


def sets(*names: str) -> set[frozenset[str]]:
    return {frozenset(n) for n in names}


@pytest.mark.parametrize(("n", "rounds"), [(2, 1), (3, 2), (4, 2), (5, 3), (6, 3), (8, 3), (9, 4), (12, 4)])
def test_rounds(n, rounds):
    assert rounds_for(n) == rounds


def test_one_contestant_is_no_tournament():
    with pytest.raises(ValueError, match="two contestants"):
        rounds_for(1)


def test_opponents_have_similar_points():
    assert pairs(pair(standings({"a": 2, "b": 2, "c": 1, "d": 1, "e": 0, "f": 0}), 0, "client", 3)) == sets(
        "ab", "cd", "ef"
    )


def test_an_odd_score_group_floats_one_contestant_to_the_next():
    # groups of three: two of each meet within, one of each floats; nobody meets across two points
    found = pairs(pair(standings({"a": 2, "b": 2, "c": 2, "d": 1, "e": 1, "f": 1}), 0, "client", 3))
    across = [p for p in found if len(p & set("abc")) == 1]
    assert len(across) == 1 and len(found) == 3


def test_a_rematch_that_greedy_pairing_forces_is_avoided():
    # greedy, from the top: a-b is new, so it leaves c-d, who have met; a-c and b-d (or a-d, b-c) avoid it
    table = standings({"a": 2, "b": 2, "c": 1, "d": 1}, met=["cd"])
    assert "cd" not in {"".join(sorted(p)) for p in pair(table, 0, "client", 2).pairs}


def test_greedy_by_neighbours_is_not_the_best_either():
    # a has met b and c, so a must meet d; the only pairing without a rematch is a-d, b-c
    table = standings({"a": 3, "b": 2, "c": 2, "d": 0}, met=["ab", "ac"])
    assert pairs(pair(table, 0, "client", 3)) == sets("ad", "bc")


def test_an_unavoidable_rematch_is_the_rarest_one():
    table = standings(
        {"a": 1, "b": 1, "c": 1, "d": 1}, met=["ab", "ab", "ac", "ac", "ad", "bc", "bd", "bd", "cd", "cd"]
    )
    assert pairs(pair(table, 0, "client", 7)) == sets("ad", "bc")


def test_the_bye_goes_to_the_lowest_without_one():
    points = {"a": 2, "b": 1, "c": 1.25, "d": 0.5, "e": 0.25}
    assert pair(standings(points), 0, "client", 3).bye == "e"
    assert pair(standings(points, byes={"e": 1}), 0, "client", 3).bye == "d"
    everyone = dict.fromkeys("abcde", 1)
    assert pair(standings(points, byes=everyone), 0, "client", 6).bye == "e"


def test_the_bye_moves_up_only_to_avoid_a_rematch():
    # without c, a-b would meet again; with the bye at b, a and c meet for the first time
    assert pair(standings({"a": 1, "b": 0.5, "c": 0}, met=["ab"]), 0, "client", 2) == Round((("a", "c"),), "b") or pair(
        standings({"a": 1, "b": 0.5, "c": 0}, met=["ab"]), 0, "client", 2
    ) == Round((("c", "a"),), "b")


@pytest.mark.parametrize("n", [5, 7])
def test_an_odd_field_over_its_rounds(n):
    """Every round has one bye, nobody has two, nobody meets twice; a bye adds half a point and no match."""
    table = Standings.of([f"m{i}" for i in range(n)])
    for number in range(1, rounds_for(n) + 1):
        round_ = pair(table, 0, "client", number)
        assert round_.bye and len(round_.pairs) == n // 2
        for a, b in round_.pairs:
            table.record(a, b, float(a < b))
        table.record_bye(round_.bye)
    assert set(table.byes.values()) == {1} and sum(table.byes.values()) == rounds_for(n)
    assert set(table.met.values()) == {1} and sum(table.met.values()) == rounds_for(n) * (n // 2)
    assert sum(table.points.values()) == rounds_for(n) * (n // 2 + 0.5)


def test_strong_contestants_meet_late():
    """Eight contestants of strict strength: after three rounds the strongest has three points and is alone there."""
    table = Standings.of("abcdefgh")
    for number in (1, 2, 3):
        for a, b in pair(table, 1, "client", number).pairs:
            table.record(a, b, float(a < b))
    assert table.points["a"] == 3 and sorted(table.points.values())[-2] < 3


def test_ties_are_broken_by_seed_client_and_round_alone():
    def drawn(names: str, seed: int = 0, client: str = "c1") -> Round:
        return pair(Standings.of(names), seed, client, 1)

    assert drawn("abcdef") == drawn("fedcba")
    assert len({drawn("abcdef", seed=s) for s in range(20)}) > 5
    assert len({drawn("abcdef", client=f"c{c}") for c in range(20)}) > 5


def test_first_rounds_spread_over_all_pairs():
    """So that the win graph is connected over clients, and neither side is always shown first."""
    first = Counter(p for c in range(100) for p in pair(Standings.of("abcdef"), 0, f"c{c}", 1).pairs)
    assert len(first) == 30 and max(first.values()) < 30

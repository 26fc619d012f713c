"""Tables of what a run's battles say beside the ratings: pure functions of battles, a list of flat rows each.

A row has `value`, `low`, `high` (95 %), `n` (clients) and `battles`. Shares are over battles, with client-weighted
intervals (stats.share_interval): a client with more battles weighs more, and its battles are one observation.
Figures of PsychePass: 5 position_bias, 6 one_sided, 7 win_rates, 8 order_consistency.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from psychepass import stats
from psychepass.schema import Battle
from tournament import ratings
from tournament.judge import POINTS

Row = dict[str, Any]
Match = tuple[Battle, Battle]  # the same two sessions, in one order and in the other


def share_row(values: Iterable[tuple[str, float]], **keys: Any) -> Row:
    """A row of the mean of (client, value in [0, 1]) over battles; without any, value is None."""
    by_client: dict[str, list[float]] = {}
    for client, value in values:
        by_client.setdefault(client, []).append(value)
    if not by_client:
        return {**keys, "value": None, "low": None, "high": None, "n": 0, "battles": 0}
    sizes = [len(v) for v in by_client.values()]
    ends = stats.share_interval([float(np.mean(v)) for v in by_client.values()], sizes)
    return {**keys, **ends.model_dump(mode="json"), "battles": sum(sizes)}


def both_orders(battles: Iterable[Battle]) -> list[Match]:
    """The matches of which both presentations were judged."""
    shown = {(b.session_a, b.session_b): b for b in battles}
    return [(b, shown[j, i]) for (i, j), b in sorted(shown.items()) if i < j and (j, i) in shown]


def of_all(ways: Mapping[str, Sequence[Match]]) -> dict[str, list[Match]]:
    """Of each way of showing sessions the matches that were judged in all of them: position bias grows as sessions come
    closer in quality, and Swiss pairing by other verdicts lets others meet."""
    judged = [{_sessions(m) for m in matches} for matches in ways.values()]
    common = set.intersection(*judged)
    return {way: [m for m in matches if _sessions(m) in common] for way, matches in ways.items()}


def _sessions(match: Match) -> frozenset[str]:
    return frozenset((match[0].session_a, match[0].session_b))


def position_bias(matches: Sequence[Match]) -> list[Row]:
    """How often the side shown first won, tied and lost, by measure; over both orders of the same sessions, so that
    strength cancels. `A - B` is the mean score of the first side, in [-1, 1]: 0 without a bias."""
    battles = [b for match in matches for b in match]
    rows = []
    for measure in ratings.COLUMNS:
        winners = [(b.profile_id, ratings.verdict(b, measure).winner) for b in battles]
        for winner in ("A", "tie", "B"):
            rows.append(share_row(((c, w == winner) for c, w in winners), measure=measure, verdict=winner))
        middle = share_row(((c, POINTS[w]) for c, w in winners), measure=measure, verdict="A - B")
        score = {k: None if middle[k] is None else 2 * middle[k] - 1 for k in ("value", "low", "high")}
        rows.append(middle | score)
    return rows


def one_sided(battles: Sequence[Battle], ranking: Sequence[str]) -> list[Row]:
    """Share of battles in which one side won all 12 dimensions: of all, by distance in `ranking`, and by pair."""

    def row(chosen: Iterable[Battle], **keys: Any) -> Row:
        return share_row(((b.profile_id, _is_one_sided(b)) for b in chosen), **keys)

    place = {name: i for i, name in enumerate(ranking)}
    distance = {b.id: abs(place[b.contestant_a] - place[b.contestant_b]) for b in battles}
    rows = [row(battles, of="all", first="", second="", distance=None)]
    for steps in sorted(set(distance.values())):
        near = [b for b in battles if distance[b.id] == steps]
        rows.append(row(near, of="distance", first="", second="", distance=steps))
    for (first, second), chosen in _by_pair(battles, place).items():
        steps = place[second] - place[first]
        rows.append(row(chosen, of="pair", first=first, second=second, distance=steps))
    return rows


def _is_one_sided(battle: Battle) -> bool:
    winners = {v.winner for v in battle.verdicts.values()}
    return len(winners) == 1 and winners != {"tie"}


def _by_pair(battles: Iterable[Battle], place: dict[str, int]) -> dict[tuple[str, str], list[Battle]]:
    """Battles by pair of contestants, the better-ranked first, in the order of the ranking."""
    found: dict[tuple[str, str], list[Battle]] = {}
    for battle in battles:
        first, second = sorted((battle.contestant_a, battle.contestant_b), key=place.__getitem__)
        found.setdefault((first, second), []).append(battle)
    return dict(sorted(found.items(), key=lambda item: (place[item[0][0]], place[item[0][1]])))


def win_rates(battles: Sequence[Battle], ranking: Sequence[str]) -> list[Row]:
    """Win rate of each contestant by measure, against the opponents that its pairing gave it; a tie is half a win."""
    rows = []
    for name in ranking:
        own = [
            b if b.contestant_a == name else b.swapped() for b in battles if name in (b.contestant_a, b.contestant_b)
        ]
        for measure in ratings.COLUMNS:
            points = ((b.profile_id, POINTS[ratings.verdict(b, measure).winner]) for b in own)
            rows.append(share_row(points, contestant=name, measure=measure))
    return rows


def order_consistency(matches: Sequence[Match], ranking: Sequence[str]) -> list[Row]:
    """Share of matches whose verdict is the same in both orders: by measure, and by pair for the overall verdict."""
    rows = [
        _agreement(matches, _swapped_verdict, of="measure", measure=m, first="", second="") for m in ratings.COLUMNS
    ]
    second_of = {match[0].id: match for match in matches}
    place = {name: i for i, name in enumerate(ranking)}
    for (first, second), chosen in _by_pair((m[0] for m in matches), place).items():
        of_pair = [second_of[b.id] for b in chosen]
        keys = {"of": "pair", "measure": "overall", "first": first, "second": second}
        rows.append(_agreement(of_pair, _swapped_verdict, **keys))
    return rows


def repetition(*judged: Sequence[Battle]) -> list[Row]:
    """Share of equal verdicts where the same judge was asked again about a presentation, by measure.

    Each of `judged` holds a presentation once; one that was judged r times gives r(r - 1)/2 pairs of verdicts, and its
    share is the mean over them. `battles` counts presentations.
    """
    by_sessions: dict[tuple[str, str], list[Battle]] = {}
    for battle in (b for battles in judged for b in battles):
        by_sessions.setdefault((battle.session_a, battle.session_b), []).append(battle)
    repeated = [of for of in by_sessions.values() if len(of) > 1]
    rows = []
    for measure in ratings.COLUMNS:
        winners = [(of[0].profile_id, [ratings.verdict(b, measure).winner for b in of]) for of in repeated]
        shares = ((c, float(np.mean([x == y for x, y in combinations(w, 2)]))) for c, w in winners)
        rows.append(share_row(shares, measure=measure))
    return rows


def _swapped_verdict(battle: Battle, measure: str) -> Any:
    return ratings.verdict(battle.swapped(), measure)


def _agreement(pairs: Sequence[Match], verdict: Callable[[Battle, str], Any], **keys: Any) -> Row:
    """Share of pairs whose second battle, read by `verdict`, has the winner of the first."""
    measure = keys["measure"]
    same = ((a.profile_id, ratings.verdict(a, measure).winner == verdict(b, measure).winner) for a, b in pairs)
    return share_row(same, **keys)

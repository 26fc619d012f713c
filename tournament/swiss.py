"""Swiss pairing of the contestants of one client (PsychePass, section 3.2.2); pure and deterministic.

A round is one minimum-weight perfect matching, in which a bye is a match against nobody. Its weight orders the
aims, each infinitely heavier than the next:
1. no contestant has a second bye while another has none;
2. no rematch that can be avoided;
3. the bye goes to the lowest-ranked;
4. opponents have similar points: the sum of squared differences is least, so an odd score group floats one
   contestant to the next group rather than one across many;
5. ties are broken by a hash of seed, client, round and names, never by the order of the input.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import networkx as nx

BYE_POINTS = 0.5
QUARTERS = 4  # points come in quarters: the mean of two orders, each 0, 0.5 or 1
TIE_BREAK = 2**20
NOBODY = ""


@dataclass
class Standings:
    """What the contestants of one client have done so far. `points` are in [0, rounds played]; `results` are the
    judged matches as (a, b, points of a)."""

    points: dict[str, float]
    met: Counter[frozenset[str]] = field(default_factory=Counter)
    byes: Counter[str] = field(default_factory=Counter)
    results: list[tuple[str, str, float]] = field(default_factory=list)

    @classmethod
    def of(cls, contestants: Iterable[str]) -> Standings:
        return cls(dict.fromkeys(sorted(contestants), 0.0))

    def record(self, a: str, b: str, points_a: float | None) -> None:
        """A match, whose one point was shared points_a : 1 - points_a. None: it could not be judged; the two have
        met, with half a point each for pairing, and there is no result."""
        self.met[frozenset((a, b))] += 1
        if points_a is None:
            points_a = BYE_POINTS
        else:
            self.results.append((a, b, points_a))
        self.points[a] += points_a
        self.points[b] += 1 - points_a

    def record_bye(self, name: str) -> None:
        """A bye gives half a point for pairing (what an equal opponent yields), and no battle. Tournaments of
        people give a whole one; here that would lift the weakest contestant among opponents unlike it."""
        self.byes[name] += 1
        self.points[name] += BYE_POINTS


@dataclass(frozen=True)
class Round:
    """`pairs` in presentation order (A, B); `bye` is the contestant without a match, if their number is odd."""

    pairs: tuple[tuple[str, str], ...]
    bye: str | None = None


def rounds_for(contestants: int) -> int:
    """ceil(log2 N): 3 rounds at 6 contestants, 4 at 12."""
    if contestants < 2:
        raise ValueError(f"a tournament needs two contestants or more, got {contestants}")
    return math.ceil(math.log2(contestants))


def lots(seed: int, client: str, round: int) -> Callable[..., int]:
    """Lots that depend on seed, client, round and the names drawn for, never on the order of the input."""

    def draw(*names: str) -> int:
        text = "\x1f".join((str(seed), client, str(round), *names))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")

    return draw


def presented(a: str, b: str, draw: Callable[..., int]) -> tuple[str, str]:
    """The two in the order in which they are shown, by lot."""
    a, b = sorted((a, b))
    return (a, b) if draw(a, b, "first") % 2 else (b, a)


def pair(standings: Standings, seed: int, client: str, round: int) -> Round:
    """The next round of one client's tournament; same standings, seed, client and round give the same pairs."""
    draw = lots(seed, client, round)
    names = sorted(standings.points)
    players = [*names, NOBODY] if len(names) % 2 else names
    graph = nx.Graph()
    graph.add_nodes_from(players)
    weights = _Weights(standings, sorted(names, key=lambda n: (standings.points[n], draw(n))))
    for i, a in enumerate(players):
        for b in players[i + 1 :]:
            graph.add_edge(a, b, weight=weights.of(a, b) + draw(*sorted((a, b))) % TIE_BREAK)
    matching = cast("Iterable[tuple[Any, Any]]", nx.min_weight_matching(graph))
    pairs = sorted(tuple(sorted(edge)) for edge in matching)
    bye = next((b for a, b in pairs if a == NOBODY), None)
    return Round(tuple(presented(a, b, draw) for a, b in pairs if a != NOBODY), bye)


class _Weights:
    """Whole-number weights with one unit an aim, each unit above the largest sum of all lesser aims."""

    def __init__(self, standings: Standings, lowest_first: list[str]):
        n = len(lowest_first)
        self.standings = standings
        self.rank = {name: i for i, name in enumerate(lowest_first)}
        spread = max(self._quarters(name) for name in lowest_first) ** 2
        self.difference = TIE_BREAK * (n + 1)
        self.bye_rank = self.difference * (spread * n + 1)
        self.rematch = self.bye_rank * (n + 1)
        self.second_bye = self.rematch * (sum(standings.met.values()) + 1)

    def _quarters(self, name: str) -> int:
        return round(QUARTERS * self.standings.points[name])

    def of(self, a: str, b: str) -> int:
        if NOBODY in (a, b):
            name = a or b
            return self.second_bye * self.standings.byes[name] + self.bye_rank * self.rank[name]
        difference = (self._quarters(a) - self._quarters(b)) ** 2
        return self.rematch * self.standings.met[frozenset((a, b))] + self.difference * difference

"""Base against aligned from battles: outcomes a client, shares, win scores and exact tests. Pure functions.

The unit is the client: all battles of a client (several seeds a policy, every pair of seeds) are averaged
before anything else. An outcome is +1 (the first side won), 0 (tie) or -1.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import numpy as np

from psychepass import stats
from psychepass.schema import Battle, Dimension

OVERALL = "overall"
MEASURES = (OVERALL, *(d.value for d in Dimension))
Outcomes = dict[str, dict[str, list[int]]]  # client -> measure -> one outcome a battle
GAMING = "consistent with gaming of word lists"


def outcomes(battles: Iterable[Battle], first: Collection[str]) -> Outcomes:
    """Outcomes from the side of the sessions in `first`; of two such sessions, or none, the one at A.

    Of a judge without an order, which decides both alike, give one of them; of one that is shown both, both.
    """
    found: Outcomes = {}
    for battle in battles:
        seen = battle if battle.session_a in first or battle.session_b not in first else battle.swapped()
        client = found.setdefault(battle.profile_id, {m: [] for m in MEASURES})
        client[OVERALL].append(_points(seen.overall.winner))
        for dimension, verdict in seen.verdicts.items():
            client[dimension.value].append(_points(verdict.winner))
    return found


def scores(found: Outcomes, measure: str) -> list[float]:
    """Mean outcome a client, in the order of client ids."""
    return [float(np.mean(found[c][measure])) for c in sorted(found)]


def table(found: Outcomes, judge: str, seed: int = 0) -> dict[str, Any]:
    """{"overall": row, "dimensions": {dimension: row}}.

    A row: client-weighted shares `win`, `loss`, `tie` with intervals, `score` in [-1, 1] with `low` and `high`,
    `p` (overall: two-sided exact sign flips; dimensions: joint max-T over the 12), `n` clients, `battles`,
    and `shown`: better or worse where the interval leaves 0 out, else not shown.
    """
    dimensions = [d.value for d in Dimension]
    joint_D = stats.max_t_sign_flips(np.array([scores(found, d) for d in dimensions]).T, seed)
    return {
        "overall": _row(found, OVERALL, judge, stats.sign_flip_test(scores(found, OVERALL), seed=seed)),
        "dimensions": {d: _row(found, d, judge, float(p)) for d, p in zip(dimensions, joint_D, strict=True)},
    }


def mark_gaming(judge: dict[str, Any], shadow: dict[str, Any]) -> list[str]:
    """Measures shown better under the judge but not under the shadow judge, whose word lists are others."""
    rows = {OVERALL: (judge["overall"], shadow["overall"])} | {
        d: (row, shadow["dimensions"][d]) for d, row in judge["dimensions"].items()
    }
    return [m for m, (ours, theirs) in rows.items() if ours["shown"] == "better" != theirs["shown"]]


def median_client(found: Outcomes) -> str:
    """The client with the middle overall score; the lower one of an even number, ties in order of ids."""
    ordered = sorted(found, key=lambda c: (float(np.mean(found[c][OVERALL])), c))
    return ordered[(len(ordered) - 1) // 2]


def per_client(values: Mapping[str, list[Any]], of: Callable[[Any], float]) -> list[float]:
    """Mean of `of` over each client's items, in the order of client ids."""
    return [float(np.mean([of(v) for v in values[c]])) for c in sorted(values)]


def _row(found: Outcomes, measure: str, judge: str, p: float) -> dict[str, Any]:
    ends = stats.win_score_interval(scores(found, measure))
    row: dict[str, Any] = {}
    for name, points in (("win", 1), ("tie", 0), ("loss", -1)):
        share = stats.share_interval([float(np.mean([o == points for o in found[c][measure]])) for c in sorted(found)])
        row |= {name: share.value, f"{name}_low": share.low, f"{name}_high": share.high}
    return row | {
        "score": ends.value,
        "low": ends.low,
        "high": ends.high,
        "p": float(p),
        "n": ends.n,
        "battles": sum(len(found[c][measure]) for c in found),
        "judge": judge,
        "shown": "better" if ends.low > 0 else "worse" if ends.high < 0 else "not shown",
    }


def _points(winner: str) -> int:
    return {"A": 1, "tie": 0, "B": -1}[winner]

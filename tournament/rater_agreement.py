"""How far raters agree, corrected for chance: Cohen's kappa and Krippendorff's alpha, with intervals over clients.

Cohen's kappa of two raters: (p_o - p_e) / (1 - p_e), p_o the (weighted) share of items on which they agree, p_e that
share if each kept its own frequencies and answered at random. None where p_e is 1: both said one thing throughout.
Alpha is the library's (`krippendorff`), None where everybody said the same throughout.

Verdicts on pairs: which of two sessions is called first is arbitrary, and the frequencies of "A" and "B" hang on it.
So each item is counted in both orientations (departure from PsychePass, whose section 4.4 does not say which it
took): A and B are then equally frequent, and no figure depends on the order in which anybody was shown anything.

Intervals: delete-one-client jackknife with t(n - 1), cut at the ends of the range; a case belongs to one client, so
that with a client a case it is the jackknife over cases within the stratum. Where no deletion moves the figure (nobody
ever disagreed) it has nothing to go by: both ends are None, and the share of agreement beside it has an interval.
Legend: R raters, I items, U units (clients), K categories.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Literal

import krippendorff
import numpy as np

from psychepass.schema import Dimension, Winner
from psychepass.stats import jackknife_t, share_interval

CATEGORIES: tuple[Winner, ...] = ("A", "tie", "B")  # mirrored by reversal
JUDGE = "judge"
Row = dict[str, Any]
Statistic = Callable[[Sequence["Item"]], float | None]


@dataclass(frozen=True)
class Item:
    """One case on one dimension: each rater's verdict, all in the same orientation of the two sessions."""

    stratum: str
    client: str
    case: str
    dimension: str
    verdicts: Mapping[str, Winner]


def cohen_kappa(table_KK: np.ndarray, weights: Literal["linear", "quadratic"] | None = None) -> float | None:
    """Kappa of a table of counts [first rater's category, second rater's]; weighted kappa for ordered categories."""
    p_KK = np.asarray(table_KK, dtype=float) / np.sum(table_KK)
    k = len(p_KK)
    distance_KK = np.abs(np.subtract.outer(np.arange(k), np.arange(k)))
    power = {None: 0, "linear": 1, "quadratic": 2}[weights]
    cost_KK = np.where(distance_KK == 0, 0.0, distance_KK.astype(float) ** power)
    by_chance = float((cost_KK * np.outer(p_KK.sum(axis=1), p_KK.sum(axis=0))).sum())
    return None if by_chance == 0 else 1 - float((cost_KK * p_KK).sum()) / by_chance


def alpha(ratings_RI: Sequence[Sequence[float]] | np.ndarray, level: Literal["nominal", "ordinal"]) -> float | None:
    """Krippendorff's alpha; NaN is a rating that was not given."""
    x_RI = np.asarray(ratings_RI, dtype=float)
    if len(np.unique(x_RI[~np.isnan(x_RI)])) < 2:
        return None
    return float(krippendorff.alpha(reliability_data=x_RI, level_of_measurement=level))


def kappa_of(items: Sequence[Item], first: str, second: str) -> float | None:
    """Cohen's kappa of two raters over items in both orientations."""
    table_KK = np.zeros((3, 3))
    for item in items:
        table_KK[CATEGORIES.index(item.verdicts[first]), CATEGORIES.index(item.verdicts[second])] += 1
    return cohen_kappa(table_KK + table_KK[::-1, ::-1])


def alpha_of(items: Sequence[Item], raters: Sequence[str]) -> float | None:
    """Nominal alpha of several raters over items in both orientations."""
    x_RI = np.array([[CATEGORIES.index(i.verdicts[r]) for i in items] for r in raters])
    return alpha(np.hstack([x_RI, 2 - x_RI]), "nominal")


def mean_kappa(items: Sequence[Item], pairs: Sequence[tuple[str, str]]) -> float | None:
    """The mean of the pairs' kappas; None where one is not defined."""
    found = [kappa_of(items, a, b) for a, b in pairs]
    known = [k for k in found if k is not None]
    return float(np.mean(known)) if len(known) == len(found) else None


def over_clients(items: Sequence[Item], statistic: Statistic, most: float = 1.0) -> Row:
    """{"value", "low", "high", "n"} of a statistic of items in [-most, most], by delete-one-client jackknife."""
    clients = sorted({i.client for i in items})
    value = statistic(items)
    ends: Row = {"value": value, "low": None, "high": None, "n": len(clients)}
    if value is None or len(clients) < 2:
        return ends
    rest = [statistic([i for i in items if i.client != c]) for c in clients]
    known = [x for x in rest if x is not None]
    if len(known) < len(rest) or np.ptp(known) < 1e-12:
        return ends
    found = jackknife_t(known, value)
    return ends | {"low": max(-most, found.low), "high": min(most, found.high)}


def same_verdict(items: Sequence[Item], pairs: Sequence[tuple[str, str]]) -> Row:
    """{"value", "low", "high", "n"}: share of items on which a pair agrees, mean over pairs, client-weighted ends."""
    by_client: dict[str, list[float]] = {}
    for item in items:
        agreed = [item.verdicts[a] == item.verdicts[b] for a, b in pairs]
        by_client.setdefault(item.client, []).append(float(np.mean(agreed)))
    found = share_interval([float(np.mean(v)) for v in by_client.values()], [len(v) for v in by_client.values()])
    return found.model_dump(mode="json")


def ties(items: Sequence[Item], raters: Sequence[str]) -> float:
    """Share of ties among the raters' verdicts."""
    return float(np.mean([i.verdicts[r] == "tie" for i in items for r in raters]))


def agreement_rows(items: Sequence[Item], raters: Sequence[str], strata: Sequence[str]) -> list[Row]:
    """Table 3 of PsychePass, and what belongs beside it: by stratum, over all items, and by dimension.

    `between` names a pair, or the mean over pairs ("raters and judge", "raters"), or their difference; `measure` is
    kappa, agreement (share of equal verdicts) or alpha (of all raters, without the judge). n counts clients.
    """
    groups = [("stratum", s, [i for i in items if i.stratum == s]) for s in strata]
    groups.append(("all", "all", list(items)))
    groups += [("dimension", d, [i for i in items if i.dimension == d]) for d in Dimension]
    rows = []
    for of, name, chosen in groups:
        if not chosen:
            continue
        counts = {"cases": len({i.case for i in chosen}), "items": len(chosen)}
        rows += [{"of": of, "name": str(name), **row, **counts} for row in _rows_of(chosen, raters, of != "dimension")]
    return rows


def _rows_of(items: Sequence[Item], raters: Sequence[str], each_pair: bool) -> list[Row]:
    with_judge, human = [(r, JUDGE) for r in raters], list(combinations(raters, 2))
    groups: list[tuple[str, list[tuple[str, str]]]] = []
    if each_pair:
        groups += [(f"{a} and {b}", [(a, b)]) for a, b in (*with_judge, *human)]
    groups += [("raters and judge", with_judge), ("raters", human)]
    rows = []
    for between, pairs in groups:
        said = {
            "ties_first": round(ties(items, list(dict.fromkeys(a for a, _ in pairs))), 6),
            "ties_second": round(ties(items, list(dict.fromkeys(b for _, b in pairs))), 6),
        }
        kappa = over_clients(items, lambda chosen, pairs=pairs: mean_kappa(chosen, pairs))
        rows.append({"between": between, "measure": "kappa", **kappa, **said})
        rows.append({"between": between, "measure": "agreement", **same_verdict(items, pairs), **said})
    apart = over_clients(items, lambda chosen: _difference(chosen, with_judge, human), most=2.0)
    said = {"ties_first": round(ties(items, raters), 6), "ties_second": round(ties(items, [JUDGE]), 6)}
    rows.append({"between": "raters and judge - raters", "measure": "kappa", **apart, **said})
    said = {"ties_first": said["ties_first"], "ties_second": said["ties_first"]}
    rows.append({"between": "raters", "measure": "alpha", **over_clients(items, lambda c: alpha_of(c, raters)), **said})
    return rows


def _difference(
    items: Sequence[Item], with_judge: Sequence[tuple[str, str]], human: Sequence[tuple[str, str]]
) -> float | None:
    ours, ceiling = mean_kappa(items, with_judge), mean_kappa(items, human)
    return None if ours is None or ceiling is None else ours - ceiling

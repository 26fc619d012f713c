"""Whether the reward model's confidence is earned: it gives the side that it ranks first sigmoid(|margin|).

Every client weighs the same, a pair as its client's weight over the client's pairs. Pure functions of NumPy
arrays. Legend: P pairs, K bins.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from psychepass.schema import PreferencePair
from psychepass.stats import jackknife_t, share_interval
from reward_model.accuracy import Margin, correct, row_of

BINS = 10
PAIRS_A_BIN = 10
DRAWS = 200


class Forecasts(NamedTuple):
    """Of each pair: the client's number, the confidence in [0.5, 1), whether it was right (1, 0, undecided 0.5)."""

    client_P: np.ndarray
    confidence_P: np.ndarray
    correct_P: np.ndarray

    @property
    def weight_P(self) -> np.ndarray:
        """Sums to 1, alike for every client."""
        _, place_P, pairs = np.unique(self.client_P, return_inverse=True, return_counts=True)
        return 1 / (pairs[place_P] * len(pairs))

    def of(self, chosen_P: np.ndarray) -> Forecasts:
        """Those of the pairs where the mask is true."""
        return Forecasts(self.client_P[chosen_P], self.confidence_P[chosen_P], self.correct_P[chosen_P])


def forecasts(pairs: Iterable[PreferencePair], margin: Margin) -> Forecasts:
    pairs = list(pairs)
    number = {client: i for i, client in enumerate(sorted({p.profile_id for p in pairs}))}
    margin_P = np.array([margin(p) for p in pairs], dtype=float)
    return Forecasts(
        client_P=np.array([number[p.profile_id] for p in pairs]),
        confidence_P=1 / (1 + np.exp(-np.abs(margin_P))),
        correct_P=np.array([correct(m) for m in margin_P]),
    )


def equal_mass_bins(confidence_P: np.ndarray, weight_P: np.ndarray, bins: int) -> np.ndarray:
    """The bin of each pair, 0 to bins - 1, of about equal weight; equal confidences share a bin."""
    _, place_P = np.unique(confidence_P, return_inverse=True)
    mass_U = np.bincount(place_P, weights=weight_P)
    middle_U = (np.cumsum(mass_U) - mass_U / 2) / mass_U.sum()
    return np.minimum((middle_U * bins).astype(int), bins - 1)[place_P]


def expected_calibration_error(found: Forecasts, bins: int) -> float:
    """sum over bins of |weight of right answers - weight of confidence|: 0 where each bin is as right as it says."""
    weight_P = found.weight_P
    bin_P = equal_mass_bins(found.confidence_P, weight_P, bins)
    gap_K = np.bincount(bin_P, weights=weight_P * (found.correct_P - found.confidence_P), minlength=bins)
    return float(np.abs(gap_K).sum())


def calibration(found: Forecasts, seed: int = 0) -> dict[str, Any]:
    """ECE and mean overconfidence with delete-one-client jackknife intervals, and the reliability table.

    Bins: ten, or fewer so that one holds ten pairs on average. With few pairs the ECE is above 0 by chance
    alone: `ece_if_calibrated` is the mean ECE of a model whose every confidence is true, and the middle 95 % of
    200 seeded draws of such a model on these pairs (independent draws, so if anything too low).
    """
    n = len(found.client_P)
    clients = np.unique(found.client_P)
    bins = max(1, min(BINS, n // PAIRS_A_BIN))
    ece = expected_calibration_error(found, bins)
    rest = [found.of(found.client_P != c) for c in clients] if len(clients) > 1 else [found]
    ece_row = row_of(jackknife_t([expected_calibration_error(r, bins) for r in rest], ece), n)
    ends = (max(0.0, ece_row["low"]), min(1.0, ece_row["high"])) if len(clients) > 1 else (0.0, 1.0)
    rng = np.random.default_rng(seed)
    drawn = [
        expected_calibration_error(found._replace(correct_P=(rng.random(n) < found.confidence_P).astype(float)), bins)
        for _ in range(DRAWS)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {
        "bins": bins,
        "ece": ece_row | {"low": ends[0], "high": ends[1]},
        "ece_if_calibrated": {"value": float(np.mean(drawn)), "low": float(low), "high": float(high)}
        | {"n": n, "n_clients": len(clients)},
        "overconfidence": row_of(jackknife_t([_overconfidence(r) for r in rest], _overconfidence(found)), n),
        "reliability": reliability(found, bins),
    }


def _overconfidence(found: Forecasts) -> float:
    return float(np.sum(found.weight_P * (found.confidence_P - found.correct_P)))


def reliability(found: Forecasts, bins: int) -> list[dict[str, Any]]:
    """By bin, lowest first: mean confidence, and the share that was right with its interval over clients."""
    weight_P = found.weight_P
    bin_P = equal_mass_bins(found.confidence_P, weight_P, bins)
    rows = []
    for k in np.unique(bin_P):
        inside = bin_P == k
        _, place_P = np.unique(found.client_P[inside], return_inverse=True)
        mass_C = np.bincount(place_P, weights=weight_P[inside])
        share_C = np.bincount(place_P, weights=(weight_P * found.correct_P)[inside]) / mass_C
        confidence = np.average(found.confidence_P[inside], weights=weight_P[inside])
        rows.append(
            {"confidence": float(confidence)} | row_of(share_interval(share_C, weights=mass_C), int(inside.sum()))
        )
    return rows

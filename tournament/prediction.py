"""Predicted against observed wins: whether a rating foretells verdicts with clients that it has not seen.

Legend: C clients, N contestants. Of one column; a tie counts as half a win.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from psychepass.stats import share_interval
from tournament.bradley_terry import expected_score, fit, fit_davidson

FOLDS = 10
EDGES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def out_of_fold(wins_CNN: np.ndarray, ties_C: np.ndarray | None = None, folds: int = FOLDS) -> np.ndarray:
    """expected_CNN: the share of its verdicts with client c that contestant i should win against j, by ratings of
    the clients of the other folds (every folds-th client, in order). ties_C: Davidson's model, as ratings.rate."""
    folds = min(folds, len(wins_CNN))
    fold_C = np.arange(len(wins_CNN)) % folds
    weights_FC = (fold_C != np.arange(folds)[:, None]).astype(float)
    wins_FNN = np.tensordot(weights_FC, wins_CNN, axes=1)
    if ties_C is None:
        theta_FN, nu_F = fit(wins_FNN), np.zeros(folds)
    else:
        theta_FN, nu_F = fit_davidson(wins_FNN, weights_FC @ ties_C)
    gap_FNN = theta_FN[:, :, None] - theta_FN[:, None]
    return expected_score(gap_FNN, nu_F[:, None, None])[fold_C]


def calibration(wins_CNN: np.ndarray, ties_C: np.ndarray | None = None) -> list[dict[str, Any]]:
    """A row a band of the favourite's predicted share, among those with a verdict: the mean prediction, the observed
    share with its 95 % interval over clients (stats.share_interval), and how many verdicts and clients these are.

    Raises:
        ValueError: fewer than two clients: none is left to rate by.
    """
    if len(wins_CNN) < 2:
        raise ValueError(f"a prediction for unseen clients needs two clients or more, got {len(wins_CNN)}")
    expected_CNN = out_of_fold(wins_CNN, ties_C)
    verdicts_CNN = wins_CNN + wins_CNN.swapaxes(1, 2)
    first_NN = np.triu(np.ones(wins_CNN.shape[1:], dtype=bool), 1)  # of two that are level the first is the favourite
    favourite_CNN = (expected_CNN > 0.5) | ((expected_CNN == 0.5) & first_NN)
    band_CNN = np.clip(np.searchsorted(EDGES, expected_CNN, side="right") - 1, 0, len(EDGES) - 2)
    rows = []
    for band in range(len(EDGES) - 1):
        counted_CNN = verdicts_CNN * (favourite_CNN & (band_CNN == band))
        n_C = counted_CNN.sum(axis=(1, 2))
        met = n_C > 0
        if not met.any():
            continue
        won_C = (wins_CNN * (counted_CNN > 0)).sum(axis=(1, 2))
        observed = share_interval(won_C[met] / n_C[met], n_C[met])
        rows.append(
            {"from": EDGES[band], "to": EDGES[band + 1]}
            | {"predicted": round(float((expected_CNN * counted_CNN).sum() / n_C.sum()), 6)}
            | {"observed": round(observed.value, 6), "low": round(observed.low, 6), "high": round(observed.high, 6)}
            | {"n": round(n_C.sum()), "n_clients": observed.n}
        )
    return rows

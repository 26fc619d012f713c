"""Intervals of ratings over clients, intervals of ranks, and groups that cannot be told apart; pure functions.

Legend: B resamples, C clients, F draws, N contestants. All of one column (overall or a dimension) at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import networkx as nx
import numpy as np
from scipy import stats as distributions

JACKKNIFE_BELOW = 30
RESAMPLES = 1_000
LEVEL = 0.95
SAME = 1e-6  # in rating points: what the fit's tolerance leaves of no difference
Method = Literal["jackknife-t", "dirichlet-bootstrap"]


def method_for(n_clients: int) -> Method:
    return "jackknife-t" if n_clients < JACKKNIFE_BELOW else "dirichlet-bootstrap"


def client_weights(n_clients: int, seed: int = 0) -> np.ndarray:
    """weights_BC of the fits behind an interval. Under 30 clients: all but one, each in turn. Else 1,000 draws of
    C Dirichlet(1, …, 1) (Rubin's Bayesian bootstrap), which leaves every client some weight and so keeps the win
    graph connected where it was."""
    if method_for(n_clients) == "jackknife-t":
        return 1 - np.eye(n_clients)
    return np.random.default_rng(seed).dirichlet(np.ones(n_clients), size=RESAMPLES) * n_clients


def multinomial_weights(n_clients: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """weights_BC of the ordinary bootstrap: how often each client is drawn. Unlike the above it loses clients, which
    shows on how few of them the win graph hangs."""
    return (
        np.random.default_rng(seed).multinomial(n_clients, np.full(n_clients, 1 / n_clients), resamples).astype(float)
    )


@dataclass(frozen=True)
class Spread:
    """What the resamples say of one column; `apart_NN[i, j]`: i and j can be told apart."""

    low_N: np.ndarray
    high_N: np.ndarray
    rank_low_N: np.ndarray
    rank_high_N: np.ndarray
    apart_NN: np.ndarray


def spread(
    rating_N: np.ndarray,
    resampled_BN: np.ndarray,
    n_clients: int,
    seed: int = 0,
    open_NN: np.ndarray | None = None,
) -> Spread:
    """Intervals of one column's ratings and ranks at 95 %; `resampled_BN` by client_weights, with the same seed.

    jackknife-t: rating ± t(C - 1) times the jackknife's standard error. dirichlet-bootstrap: percentiles.
    open_NN is a covariance that the clients cannot show (bradley_terry.left_open): it is added to theirs.
    A rank interval of contestant i is 1 + (those shown above i) to N - (those shown below i), where each difference
    to i has a half-width of c_i standard errors, and c_i is the 95 % quantile of the largest |t(C - 1)| of all N - 1:
    so the interval holds the true rank in 95 % of cases (Mogstad, Romano, Shaikh and Wilhelm 2024, Rev. Econ. Stud.
    91:476). Two contestants are told apart where their difference exceeds the same of all pairs of the column at
    once: where all are equal, nobody is told apart in 95 % of cases.
    """
    gap_NN = rating_N[:, None] - rating_N
    rng = np.random.default_rng([seed, 1])  # apart from the weights' draws
    open_NN = np.zeros_like(gap_NN) if open_NN is None else open_NN
    shift_FN = np.zeros((RESAMPLES, len(rating_N)))
    if open_NN.any():
        shift_FN = rng.multivariate_normal(np.zeros(len(rating_N)), open_NN, size=RESAMPLES)
    chi_F1 = np.sqrt(rng.chisquare(n_clients - 1, size=(RESAMPLES, 1)) / (n_clients - 1))
    deviations_BN = resampled_BN - resampled_BN.mean(axis=0)
    if method_for(n_clients) == "jackknife-t":
        deviations_BN *= np.sqrt((n_clients - 1) / n_clients)
        error_N = np.sqrt((deviations_BN**2).sum(axis=0) + np.diag(open_NN))
        half_N = distributions.t.ppf((1 + LEVEL) / 2, n_clients - 1) * error_N
        low_N, high_N = rating_N - half_N, rating_N + half_N
        draws_FN = rng.standard_normal((RESAMPLES, n_clients)) @ deviations_BN  # with the jackknife's covariance
        variance_NN = ((deviations_BN[:, :, None] - deviations_BN[:, None]) ** 2).sum(axis=0)
    else:
        low_N, high_N = np.percentile(resampled_BN + shift_FN, [50 * (1 - LEVEL), 50 * (1 + LEVEL)], axis=0)
        draws_FN = deviations_BN * np.sqrt((n_clients + 1) / (n_clients - 1))  # Dirichlet weights vary by less
        variance_NN = ((draws_FN[:, :, None] - draws_FN[:, None]) ** 2).mean(axis=0)
    open_N = np.diag(open_NN)
    error_NN = np.sqrt(variance_NN + np.maximum(open_N[:, None] + open_N - 2 * open_NN, 0))
    draws_FN = (draws_FN + shift_FN) / chi_F1
    largest_FN = _largest_t(draws_FN, error_NN)
    of_one_N = np.quantile(largest_FN, LEVEL, axis=0)
    of_all = np.quantile(largest_FN.max(axis=1), LEVEL)
    half_NN = of_one_N[:, None] * error_NN + SAME
    return Spread(
        low_N=low_N,
        high_N=high_N,
        rank_low_N=1 + (gap_NN < -half_NN).sum(axis=1),
        rank_high_N=len(rating_N) - (gap_NN > half_NN).sum(axis=1),
        apart_NN=np.abs(gap_NN) > of_all * error_NN + SAME,
    )


def _largest_t(draws_FN: np.ndarray, error_NN: np.ndarray) -> np.ndarray:
    """Of each draw and contestant the largest |difference| to another one in standard errors; 0 where all are 0."""
    found_FN = np.zeros_like(draws_FN)
    scale_NN = np.where(error_NN > SAME, error_NN, np.inf)
    for i in range(draws_FN.shape[1]):
        found_FN[:, i] = (np.abs(draws_FN[:, [i]] - draws_FN) / scale_NN[i]).max(axis=1)
    return found_FN


def groups(ranking: Sequence[int], apart_NN: np.ndarray) -> list[list[int]]:
    """Largest sets of contestants no two of which are told apart, best first; a contestant may stand in several.

    `ranking` holds the contestants' positions in apart_NN, best first.
    """
    place = {contestant: p for p, contestant in enumerate(ranking)}
    alike = nx.from_numpy_array(~apart_NN & ~np.eye(len(apart_NN), dtype=bool))
    return sorted((sorted(clique, key=place.__getitem__) for clique in nx.find_cliques(alike)),
                  key=lambda clique: [place[c] for c in clique])  # fmt: skip

"""Bradley-Terry ratings with intervals over clients (PsychePass, section 3.2.3 and Algorithm 1).

P(i beats j) = 1/(1 + exp(-(r_i - r_j)/xi)), xi = 400/ln 10; ratings are r = 100 + xi theta with mean 100.
Departures: the estimate is the converged maximum (the paper descends a gradient for a while), with a weak
prior: one virtual tie of every contestant against an opponent at the baseline (a log-F(1, 1) prior). It keeps
ratings finite where a contestant has won or lost everything. A tie counts as half a win for each (y = 0.5).
Legend: B fits in one batch, C clients, K columns (overall, then the 12 dimensions), N contestants.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.sparse.csgraph import connected_components
from scipy.special import expit

from psychepass.schema import Battle, Dimension, Rating, Verdict
from psychepass.stats import jackknife_half_widths

BASELINE = 100.0
XI = 400 / math.log(10)
PRIOR_TIES = 1.0
COLUMNS: tuple[str, ...] = ("overall", *(d.value for d in Dimension))
JACKKNIFE_BELOW = 30
RESAMPLES = 1_000
HALF_WINS = {"A": (1.0, 0.0), "tie": (0.5, 0.5), "B": (0.0, 1.0)}
Graph = Literal["ok", "separable", "disconnected"]


def wins_by_client(battles: Sequence[Battle], contestants: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Clients in name order, and wins_CKNN: how often contestant i beat j, a tie being half for each."""
    clients = sorted({b.profile_id for b in battles})
    position = {name: i for i, name in enumerate(contestants)}
    row = {client: c for c, client in enumerate(clients)}
    wins_CKNN = np.zeros((len(clients), len(COLUMNS), len(contestants), len(contestants)))
    for battle in battles:
        i, j, c = position[battle.contestant_a], position[battle.contestant_b], row[battle.profile_id]
        for k, name in enumerate(COLUMNS):
            a, b = HALF_WINS[verdict(battle, name).winner]
            wins_CKNN[c, k, i, j] += a
            wins_CKNN[c, k, j, i] += b
    return clients, wins_CKNN


def verdict(battle: Battle, column: str) -> Verdict:
    """Overall or of one dimension."""
    return battle.overall if column == "overall" else battle.verdicts[Dimension(column)]


def fit(wins_BNN: np.ndarray, prior_ties: float = PRIOR_TIES, tolerance: float = 1e-9) -> np.ndarray:
    """theta_BN, mean 0 in each fit: the maximum of sum w_ij log s(theta_i - theta_j) + the prior's
    prior_ties/2 sum_i [log s(theta_i) + log s(-theta_i)], s the logistic function, by Newton steps on counts.

    Converged where no gradient exceeds `tolerance` times the largest number of battles of a contestant.

    Raises:
        ValueError: without a prior, a win graph that is not strongly connected: no finite maximum exists.
        RuntimeError: no convergence in 200 steps.
    """
    wins_BNN = np.asarray(wins_BNN, dtype=float)
    if prior_ties == 0 and any(win_graph(w) != "ok" for w in wins_BNN):
        raise ValueError("no finite Bradley-Terry maximum: the win graph is not strongly connected; use a prior")
    size = wins_BNN.shape[-1]
    counts_BNN = wins_BNN + wins_BNN.swapaxes(1, 2)
    scale_B = 1 + counts_BNN.sum(axis=2).max(axis=1)
    theta_BN = np.zeros(wins_BNN.shape[:2])
    loss_B = _loss(theta_BN, wins_BNN, prior_ties)
    gauge = 0.0 if prior_ties else 1.0 / size  # without a prior only differences are determined
    for _ in range(200):
        win_BNN = expit(theta_BN[:, :, None] - theta_BN[:, None, :])
        gradient_BN = (counts_BNN * win_BNN - wins_BNN).sum(axis=2) + prior_ties * (expit(theta_BN) - 0.5)
        if np.all(np.abs(gradient_BN).max(axis=1) <= tolerance * scale_B):
            return theta_BN - theta_BN.mean(axis=1, keepdims=True)
        weight_BNN = counts_BNN * win_BNN * (1 - win_BNN)
        diagonal_BN = weight_BNN.sum(axis=2) + prior_ties * expit(theta_BN) * expit(-theta_BN)
        hessian_BNN = np.eye(size) * diagonal_BN[:, :, None] - weight_BNN + gauge
        step_BN = np.linalg.solve(hessian_BNN, gradient_BN[:, :, None])[:, :, 0]
        step_BN *= np.minimum(1.0, 2.0 / np.maximum(np.abs(step_BN).max(axis=1, keepdims=True), 1e-300))
        theta_BN, loss_B = _descend(theta_BN, step_BN, loss_B, wins_BNN, prior_ties)
    raise RuntimeError(f"Bradley-Terry fit did not converge: largest gradient {np.abs(gradient_BN).max():.3g}")


def _descend(
    theta_BN: np.ndarray, step_BN: np.ndarray, loss_B: np.ndarray, wins_BNN: np.ndarray, prior_ties: float
) -> tuple[np.ndarray, np.ndarray]:
    """Take each fit's step, halved until its loss does not rise (Newton alone overshoots far from the maximum)."""
    length_B1 = np.ones((len(theta_BN), 1))
    for _ in range(40):
        moved_BN = theta_BN - length_B1 * step_BN
        moved_loss_B = _loss(moved_BN, wins_BNN, prior_ties)
        rose_B = moved_loss_B > loss_B + 1e-12 * np.abs(loss_B)
        if not rose_B.any():
            break
        length_B1[rose_B] /= 2
    return moved_BN, moved_loss_B


def _loss(theta_BN: np.ndarray, wins_BNN: np.ndarray, prior_ties: float) -> np.ndarray:
    """Negative log-posterior of each fit, up to a constant."""
    surprise_BNN = np.logaddexp(0, -(theta_BN[:, :, None] - theta_BN[:, None, :]))
    prior_B = (np.logaddexp(0, theta_BN) + np.logaddexp(0, -theta_BN)).sum(axis=1)
    return (wins_BNN * surprise_BNN).sum(axis=(1, 2)) + prior_ties / 2 * prior_B


def win_graph(wins_NN: np.ndarray) -> Graph:
    """Whether the data alone has a finite maximum, i.e. everybody is reached from everybody along wins (Ford, 1957).

    disconnected: some contestants never met, not even by way of others. separable: one group won every battle
    against the rest. In both cases only the prior keeps ratings finite.
    """
    if connected_components(wins_NN > 0, directed=True, connection="strong")[0] == 1:
        return "ok"
    return "separable" if connected_components(wins_NN > 0, directed=False)[0] == 1 else "disconnected"


@dataclass(frozen=True)
class Table:
    """Ratings of all columns, on the scale of baseline 100 and 400/ln 10.

    `method` names the interval; `graph` has the flag of each column, and `resamples_flagged` the share of its
    resamples (one client left out, or reweighted) whose win graph is not strongly connected.
    """

    ratings: dict[str, list[Rating]]
    graph: dict[str, Graph]
    resamples_flagged: dict[str, float]
    method: Literal["jackknife-t", "dirichlet-bootstrap"]


def rate(wins_CKNN: np.ndarray, contestants: Sequence[str], columns: Sequence[str] = COLUMNS, seed: int = 0) -> Table:
    """Ratings with 95 % intervals over clients and rank intervals, best first.

    Under 30 clients: delete-one-client jackknife with t(C - 1). Else 1,000 resamples that weigh the clients by
    C Dirichlet(1, …, 1), which keeps the win graph connected, and percentiles. A rank interval of contestant i
    is 1 + (those whose difference to i has an interval above 0) to N - (those with one below 0), each difference
    at 95 %. Where the graph is not ok an interval shows the prior as much as the data; where all verdicts are
    ties it has no width and shows nothing (see the tie rate).

    Raises:
        ValueError: fewer than two clients, or a contestant without a battle.
    """
    n_clients = len(wins_CKNN)
    if n_clients < 2:
        raise ValueError(f"intervals over clients need two clients or more, got {n_clients}")
    full_KN = rating_scale(fit(wins_CKNN.sum(axis=0)))
    if n_clients < JACKKNIFE_BELOW:
        weights_BC = 1 - np.eye(n_clients)
    else:
        weights_BC = np.random.default_rng(seed).dirichlet(np.ones(n_clients), size=RESAMPLES) * n_clients
    wins_BKNN = np.tensordot(weights_BC, wins_CKNN, axes=1)
    flat_shape = (-1, *wins_BKNN.shape[2:])
    theta_BKN = rating_scale(fit(wins_BKNN.reshape(flat_shape))).reshape(wins_BKNN.shape[:3])
    ends = _jackknife_ends if n_clients < JACKKNIFE_BELOW else _percentile_ends
    low_KN, high_KN = ends(full_KN, theta_BKN)
    gap_KNN, gaps_BKNN = (x[..., :, None] - x[..., None, :] for x in (full_KN, theta_BKN))
    low_KNN, high_KNN = ends(gap_KNN, gaps_BKNN)
    ranks = (1 + (high_KNN < 0).sum(axis=2), full_KN.shape[1] - (low_KNN > 0).sum(axis=2))
    wins_KNN = wins_CKNN.sum(axis=0)
    ratings = {}
    for k, column in enumerate(columns):
        numbers = (full_KN[k], low_KN[k], high_KN[k], ranks[0][k], ranks[1][k])
        ratings[column] = _rows(contestants, wins_KNN[k], *numbers)
    flagged_KB = [[win_graph(w) != "ok" for w in wins_BKNN[:, k]] for k in range(len(columns))]
    return Table(
        ratings=ratings,
        graph={column: win_graph(wins_KNN[k]) for k, column in enumerate(columns)},
        resamples_flagged={column: float(np.mean(flagged_KB[k])) for k, column in enumerate(columns)},
        method="jackknife-t" if n_clients < JACKKNIFE_BELOW else "dirichlet-bootstrap",
    )


def rating_scale(theta: np.ndarray) -> np.ndarray:
    """Natural scale to ratings."""
    return BASELINE + XI * theta


def _jackknife_ends(full: np.ndarray, left_out: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    half = jackknife_half_widths(left_out.reshape(len(left_out), -1)).reshape(full.shape)
    return full - half, full + half


def _percentile_ends(_full: np.ndarray, resampled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.percentile(resampled, [2.5, 97.5], axis=0)
    return low, high


def _rows(contestants: Sequence[str], wins_NN: np.ndarray, *numbers_N: np.ndarray) -> list[Rating]:
    battles_N = (wins_NN + wins_NN.T).sum(axis=1)
    if not battles_N.all():
        unjudged = [name for name, battles in zip(contestants, battles_N, strict=True) if not battles]
        raise ValueError(f"no judged battle of {', '.join(unjudged)}")
    rows = []
    for i, name in enumerate(contestants):
        rating, low, high = (round(float(x[i]), 3) for x in numbers_N[:3])
        rows.append(
            Rating(
                contestant=name,
                rating=rating,
                low=low,
                high=high,
                rank_low=int(numbers_N[3][i]),
                rank_high=int(numbers_N[4][i]),
                battles=round(battles_N[i]),
                win_rate=round(float(wins_NN[i].sum() / battles_N[i]), 6),
            )
        )
    return sorted(rows, key=lambda r: (-r.rating, r.contestant))

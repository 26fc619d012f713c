"""Bradley-Terry and Davidson maxima: Newton steps on counts, many fits at once. Pure functions of NumPy arrays.

With d = theta_i - theta_j:  P(i beats j) : P(j beats i) : P(tie) = exp(d/2) : exp(-d/2) : nu.
nu = 0 is Bradley-Terry's P(i beats j) = 1/(1 + exp(-d)), where a tie is counted as half a win for each (y = 0.5, as
PsychePass, section 3.2.3); a free nu is Davidson's model of ties (1970, J. Am. Stat. Assoc. 65:317, equation 2.4).
Both need no more of the data than half-wins, and Davidson's the number of ties.

The weak prior of weight w is w virtual ties of every contestant against an opponent at the baseline, w/2
[log s(theta_i) + log s(-theta_i)] with s the logistic function (log-F(1, 1) at w = 1); for nu, w virtual verdicts
between equals, half of them ties. It keeps every maximum finite.
Legend: B fits in one batch, M free parameters (theta, then log nu if it is free), N contestants, P pairs i < j.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np
from scipy.sparse.csgraph import connected_components
from scipy.special import expit

PRIOR_TIES = 1.0
STEPS, HALVINGS = 200, 40
LONGEST_STEP = 2.0  # in theta: a full Newton step overshoots far from the maximum
ROW_ELEMENTS = 500_000  # of one part of a batch: what the caches of a CPU hold
Graph = Literal["ok", "separable", "disconnected"]


def fit(
    wins_BNN: np.ndarray,
    prior_ties: float = PRIOR_TIES,
    tolerance: float = 1e-9,
    start_BN: np.ndarray | None = None,
) -> np.ndarray:
    """theta_BN of Bradley-Terry, mean 0 in each fit; wins_BNN[b, i, j] counts how often i beat j, ties as halves.

    Converged where no gradient exceeds `tolerance` times the largest number of battles of a contestant. `start_BN`
    saves steps and changes nothing else: the likelihood has one maximum.

    Raises:
        ValueError: without a prior, a win graph that is not strongly connected: no finite maximum exists.
        RuntimeError: no convergence in 200 steps.
    """
    return _fit(wins_BNN, None, prior_ties, tolerance, start_BN)[0]


def fit_davidson(
    wins_BNN: np.ndarray,
    ties_B: np.ndarray,
    prior_ties: float = PRIOR_TIES,
    tolerance: float = 1e-9,
    start_BN: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """theta_BN, mean 0 in each fit, and nu_B of Davidson's model: wins_BNN as in `fit`, ties_B counts the ties.

    Raises:
        ValueError: as `fit`; without a prior also where no verdict or every verdict is a tie (nu = 0 or infinite).
        RuntimeError: no convergence in 200 steps.
    """
    ties_B = np.asarray(ties_B, dtype=float)
    verdicts_B = np.asarray(wins_BNN).sum(axis=(1, 2))
    if prior_ties == 0 and not ((ties_B > 0) & (ties_B < verdicts_B)).all():
        raise ValueError("no finite maximum of Davidson's nu: no verdict, or every verdict, is a tie; use a prior")
    theta_BN, log_nu_B = _fit(wins_BNN, ties_B, prior_ties, tolerance, start_BN)
    return theta_BN, np.exp(log_nu_B)


def expected_score(gap: np.ndarray, nu: np.ndarray | float = 0.0) -> np.ndarray:
    """P(win) + P(tie)/2 of the first of two contestants whose theta differ by `gap`."""
    return 0.5 + _moments(gap, nu)[1]


def _moments(gap: np.ndarray, nu: np.ndarray | float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """log of the three odds' sum; mean and variance of a verdict (win 1/2, tie 0, loss -1/2); probability of a tie."""
    size = np.abs(gap)
    root = np.exp(-size / 2)
    odds = root * root
    total = 1 + odds + nu * root
    tie = nu * root / total
    mean = np.copysign((1 - odds) / (2 * total), gap)
    return size / 2 + np.log(total), mean, odds / total**2 + tie * (1 - tie) / 4, tie


class _Data(NamedTuple):
    """Of each fit: battles of a pair, half the first one's lead in wins, ties (None: nu is 0)."""

    counts_BP: np.ndarray
    lead_BP: np.ndarray
    ties_B: np.ndarray | None
    limit_B: np.ndarray

    def of(self, rows: np.ndarray) -> _Data:
        ties_B = None if self.ties_B is None else self.ties_B[rows]
        return _Data(self.counts_BP[rows], self.lead_BP[rows], ties_B, self.limit_B[rows])


class _Terms(NamedTuple):
    """Negative log-posterior of each fit, its gradient, and what the Hessian is made of."""

    loss_B: np.ndarray
    gradient_BM: np.ndarray
    variance_BP: np.ndarray
    cross_BP: np.ndarray
    curvature_BM: np.ndarray

    def of(self, rows: np.ndarray) -> _Terms:
        return _Terms(*(x[rows] for x in self))


class _Model:
    """The posterior of N contestants; x_BM are the parameters."""

    def __init__(self, contestants: int, prior_ties: float):
        self.n, self.prior_ties = contestants, prior_ties
        self.first_P, self.second_P = np.triu_indices(contestants, 1)
        pairs = np.arange(len(self.first_P))
        self.sign_PN = np.zeros((len(pairs), contestants))
        self.sign_PN[pairs, self.first_P], self.sign_PN[pairs, self.second_P] = 1, -1

    def data(self, wins_BNN: np.ndarray, ties_B: np.ndarray | None, tolerance: float) -> _Data:
        won_BP, lost_BP = wins_BNN[:, self.first_P, self.second_P], wins_BNN[:, self.second_P, self.first_P]
        battles_BN = (won_BP + lost_BP) @ np.abs(self.sign_PN)
        return _Data(won_BP + lost_BP, (won_BP - lost_BP) / 2, ties_B, tolerance * (1 + battles_BN.max(axis=1)))

    def terms(self, x_BM: np.ndarray, data: _Data) -> _Terms:
        theta_BN, log_nu_B1 = x_BM[:, : self.n], x_BM[:, self.n :]
        gap_BP = theta_BN[:, self.first_P] - theta_BN[:, self.second_P]
        logs_BP, mean_BP, variance_BP, tie_BP = _moments(gap_BP, 0.0 if data.ties_B is None else np.exp(log_nu_B1))
        loss_B = (data.counts_BP * logs_BP - data.lead_BP * gap_BP).sum(axis=1)
        gradient_BM = (data.counts_BP * mean_BP - data.lead_BP) @ self.sign_PN
        curvature_BM = np.zeros_like(x_BM)
        if data.ties_B is not None:
            loss_B -= data.ties_B * log_nu_B1[:, 0]
            of_nu_B = (data.counts_BP * tie_BP).sum(axis=1) - data.ties_B
            gradient_BM = np.column_stack([gradient_BM, of_nu_B])
            curvature_BM[:, self.n] = (data.counts_BP * tie_BP * (1 - tie_BP)).sum(axis=1)
        if self.prior_ties:
            # each parameter's virtual verdicts; between equals P(tie) = nu / (2 + nu) = s(log nu - log 2)
            logs, mean, variance, _ = _moments(np.hstack([theta_BN, log_nu_B1 - math.log(2)]), 0.0)
            loss_B += self.prior_ties * logs.sum(axis=1)
            gradient_BM += self.prior_ties * mean
            curvature_BM += self.prior_ties * variance
        return _Terms(
            loss_B, gradient_BM, data.counts_BP * variance_BP, data.counts_BP * mean_BP * tie_BP, curvature_BM
        )

    def step(self, terms: _Terms, davidson: bool) -> np.ndarray:
        """Newton's step, no parameter of it longer than LONGEST_STEP."""
        m = self.n + davidson
        hessian_BMM = np.zeros((len(terms.loss_B), m, m))
        hessian_BMM[:, self.first_P, self.second_P] = -terms.variance_BP
        hessian_BMM[:, self.second_P, self.first_P] = -terms.variance_BP
        diagonal_BM = terms.curvature_BM.copy()
        diagonal_BM[:, : self.n] += terms.variance_BP @ np.abs(self.sign_PN)
        hessian_BMM[:, range(m), range(m)] = diagonal_BM
        if davidson:
            hessian_BMM[:, : self.n, self.n] = hessian_BMM[:, self.n, : self.n] = -terms.cross_BP @ self.sign_PN
        if not self.prior_ties:
            hessian_BMM[:, : self.n, : self.n] += 1 / self.n  # only differences of theta are determined
        step_BM = np.linalg.solve(hessian_BMM, terms.gradient_BM[:, :, None])[:, :, 0]
        longest_B1 = np.abs(step_BM).max(axis=1, keepdims=True)
        return step_BM * (LONGEST_STEP / np.maximum(longest_B1, LONGEST_STEP))

    def maximise(self, x_BM: np.ndarray, data: _Data) -> np.ndarray:
        """Newton steps, halved until the loss does not rise; a fit that has converged takes no further one."""
        found_BM, left = np.empty_like(x_BM), np.arange(len(x_BM))
        terms = self.terms(x_BM, data)
        for _ in range(STEPS):
            done = np.abs(terms.gradient_BM).max(axis=1) <= data.limit_B
            if done.any():
                found_BM[left[done]] = x_BM[done]
                if done.all():
                    return found_BM
                left, x_BM, data, terms = left[~done], x_BM[~done], data.of(~done), terms.of(~done)
            step_BM = self.step(terms, data.ties_B is not None)
            highest_B = terms.loss_B + 1e-12 * np.abs(terms.loss_B)
            for _ in range(HALVINGS):
                moved_BM = x_BM - step_BM
                moved = self.terms(moved_BM, data)
                rose = moved.loss_B > highest_B
                if not rose.any():
                    break
                step_BM[rose] /= 2
            x_BM, terms = moved_BM, moved
        raise RuntimeError(f"no convergence in {STEPS} steps: largest gradient {np.abs(terms.gradient_BM).max():.3g}")


def _fit(
    wins_BNN: np.ndarray, ties_B: np.ndarray | None, prior_ties: float, tolerance: float, start_BN: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """theta_BN, mean 0, and log nu (-inf where nu is 0)."""
    wins_BNN = np.asarray(wins_BNN, dtype=float)
    if prior_ties == 0 and not connected(wins_BNN).all():
        raise ValueError("no finite Bradley-Terry maximum: the win graph is not strongly connected; use a prior")
    b, n = wins_BNN.shape[:2]
    model = _Model(n, prior_ties)
    x_BM = np.zeros((b, n + (ties_B is not None)))
    if start_BN is not None:
        x_BM[:, :n] = start_BN
    rows = max(1, ROW_ELEMENTS // n**2)
    for at in (slice(first, first + rows) for first in range(0, b, rows)):
        data = model.data(wins_BNN[at], None if ties_B is None else ties_B[at], tolerance)
        x_BM[at] = model.maximise(x_BM[at], data)
    theta_BN = x_BM[:, :n]
    return theta_BN - theta_BN.mean(axis=1, keepdims=True), np.full(b, -np.inf) if ties_B is None else x_BM[:, n]


def connected(wins_BNN: np.ndarray) -> np.ndarray:
    """Whether each win graph is strongly connected: everybody is reached from everybody along wins (Ford, 1957).

    Then, and only then, the data alone has a finite maximum. By squaring: each round doubles the length of walks.
    """
    n = wins_BNN.shape[-1]
    reach_BNN = ((wins_BNN > 0) | np.eye(n, dtype=bool)).astype(np.float32)
    for _ in range(math.ceil(math.log2(max(2, n)))):
        reach_BNN = (reach_BNN @ reach_BNN > 0).astype(np.float32)
    return np.asarray(reach_BNN.all(axis=(1, 2)))


def win_graph(wins_NN: np.ndarray) -> Graph:
    """What the data alone says. ok: it has a finite maximum. disconnected: some contestants never met, not even by
    way of others. separable: one group won every battle against the rest. In both only the prior keeps ratings finite.
    """
    if connected(wins_NN[None])[0]:
        return "ok"
    return "separable" if connected_components(wins_NN > 0, directed=False)[0] == 1 else "disconnected"


def left_open(
    theta_N: np.ndarray, wins_NN: np.ndarray, met_NN: np.ndarray, nu: float = 0.0, prior_ties: float = PRIOR_TIES
) -> np.ndarray:
    """Covariance [N, N] of theta, mean taken away, in what the data alone leave open; zero where win_graph is ok.

    Where one group won every battle against another, no client says otherwise: the spread over clients is nothing, and
    yet the distance has no upper end. How far the groups (strongly connected parts of the win graph) are shifted
    against each other is known by the likelihood's curvature and the prior alone (Laplace's approximation at the
    maximum; the true posterior reaches farther outwards). met_NN counts the independent verdicts of each pair.
    """
    groups, group_N = connected_components(wins_NN > 0, connection="strong")
    member_NG = np.eye(groups)[group_N]
    told_NN = met_NN * _moments(theta_N[:, None] - theta_N, nu)[2]
    precision_NN = np.diag(told_NN.sum(axis=1) + prior_ties * expit(theta_N) * expit(-theta_N)) - told_NN
    shifts_GG = np.linalg.inv(member_NG.T @ precision_NN @ member_NG)
    centred_NG = member_NG - member_NG.mean(axis=0)
    return centred_NG @ shifts_GG @ centred_NG.T

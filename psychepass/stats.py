"""Intervals and tests whose unit is the client; pure functions of NumPy arrays.

Verdicts and rewards of one client are dependent, so every function takes ONE number a client (several seeds
or verdicts are averaged within the client first). Legend: C clients, D dimensions, F sign vectors.
Wrong input (no client, a value that is not finite or outside its range) raises ValueError.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import field_serializer
from scipy import stats as distributions

from psychepass.schema import Frozen

EXACT_CLIENTS = 16
DRAWS = 9_999
Alternative = Literal["two-sided", "greater", "less"]
Values = Sequence[float] | np.ndarray


class Interval(Frozen):
    """An estimate with its interval over `n` units (clients, unless the function says otherwise).

    An end that so few clients cannot bound is -inf or inf; in JSON it is null.
    """

    value: float
    low: float
    high: float
    n: int

    @field_serializer("low", "high", when_used="json")
    def _unbounded_is_null(self, end: float) -> float | None:
        return end if math.isfinite(end) else None


class Gate(Frozen):
    """`lower` and `upper` are one-sided 5 % ends of the win score over `n` clients."""

    verdict: Literal["REGRESSED", "NOT SHOWN", "NON-INFERIOR"]
    lower: float
    upper: float
    n: int


def win_score_interval(scores_by_client: Values, level: float = 0.95) -> Interval:
    """Mean win score (win 1, tie 0, loss -1) with a t interval after two pseudo-clients, +1 and -1.

    With y = (x_1, …, x_n, +1, -1) and m = n + 2:  mean(y) ± t(1 - (1 - level)/2; n - 1) sd(y) / sqrt(m),
    cut at ±1, where sd has the divisor m - 1. `value` is the plain mean of x; it always lies inside. One
    client alone has no spread, so its interval is the whole range.
    """
    return _pseudo_client_interval(_values(scores_by_client, -1, 1), None, -1.0, 1.0, level)


def share_interval(shares: Values, weights: Values | None = None, level: float = 0.95) -> Interval:
    """A share or an accuracy, one number in [0, 1] a client, as win_score_interval with pseudo-clients 0 and 1.

    Without weights every client counts the same. With weights w (e.g. verdicts a client) the value is
    sum(w x)/sum(w); the pseudo-clients weigh mean(w), and the standard error about the weighted mean p of all
    m = n + 2 is the ratio estimator's, sqrt(m/(m - 1) sum w²(x - p)²) / sum(w): sd/sqrt(m) at equal weights.
    """
    return _pseudo_client_interval(_values(shares, 0, 1), weights, 0.0, 1.0, level)


def _pseudo_client_interval(
    x_C: np.ndarray, weights: Values | None, least: float, most: float, level: float
) -> Interval:
    n = len(x_C)
    w_C = np.ones(n) if weights is None else _values(weights, 0, math.inf)
    if len(w_C) != n or w_C.sum() <= 0:
        raise ValueError(f"expected {n} weights with a positive sum, got {w_C.tolist()}")
    value = float(np.sum(w_C * x_C) / w_C.sum())
    if n == 1:
        return Interval(value=value, low=least, high=most, n=1)
    y, w = np.append(x_C, [least, most]), np.append(w_C, [w_C.mean()] * 2)
    m, centre = n + 2, np.sum(w * y) / w.sum()
    error = math.sqrt(m / (m - 1) * np.sum(w**2 * (y - centre) ** 2)) / w.sum()
    half = distributions.t.ppf((1 + level) / 2, n - 1) * error
    return Interval(value=value, low=float(max(least, centre - half)), high=float(min(most, centre + half)), n=n)


def gate(scores_by_client: Values, margin: float = 0.10) -> Gate:
    """Non-inferiority of a win score: one-sided 5 % ends are those of the two-sided 90 % interval.

    REGRESSED where the upper end is below 0 (this comes first), NON-INFERIOR where the lower end is above
    -margin, else NOT SHOWN. Only NON-INFERIOR passes. With nothing but ties it takes 23 clients.
    """
    ends = win_score_interval(scores_by_client, level=0.90)
    verdict = "REGRESSED" if ends.high < 0 else "NON-INFERIOR" if ends.low > -margin else "NOT SHOWN"
    return Gate(verdict=verdict, lower=ends.low, upper=ends.high, n=ends.n)


def sign_flip_test(diffs: Values, alternative: Alternative = "two-sided", seed: int = 0) -> float:
    """p of «each client's difference is as likely -d as +d», statistic T = sum(d), or |T| if two-sided.

    p = share of sign vectors s with T(s d) >= T(d): all 2^n up to n = 16 (the observed one is among them),
    else (1 + count)/(1 + 9,999) over seeded draws. The least two-sided p is 2/2^n: under 6 clients nothing
    reaches 5 %.
    """
    d_C = _values(diffs)
    if alternative == "less":
        d_C = -d_C
    sums_F = _signs(len(d_C), seed) @ d_C
    observed = d_C.sum()
    if alternative == "two-sided":
        sums_F, observed = np.abs(sums_F), abs(observed)
    reached = int(np.sum(sums_F >= observed - 1e-9 * np.abs(d_C).sum()))
    return reached / len(sums_F) if len(d_C) <= EXACT_CLIENTS else (1 + reached) / (1 + DRAWS)


def max_t_sign_flips(diffs_CD: np.ndarray | Sequence[Sequence[float]], seed: int = 0) -> np.ndarray:
    """Two-sided p a dimension, adjusted for all D dimensions by the largest statistic of each joint sign flip.

    A flip turns all dimensions of a client at once, which keeps their correlation. Statistic:
    R_d = |sum_c d_cd| / sqrt(sum_c d_cd²), in [0, sqrt(n)]; its root is flip-free and t_d is the same increasing
    function of R_d in every dimension, t = R sqrt((n - 1)/(n - R²)), so that max R orders flips as max |t| does.
    p_d = share of flips whose max R reaches R_d (single step). A dimension of zeros has p = 1.
    """
    d_CD = np.asarray(diffs_CD, dtype=float)
    if d_CD.ndim != 2 or d_CD.size == 0 or not np.isfinite(d_CD).all():
        raise ValueError(f"expected finite differences of shape [clients, dimensions], got shape {d_CD.shape}")
    root_D = np.sqrt((d_CD**2).sum(axis=0))
    root_D[root_D == 0] = 1.0
    observed_D = np.abs(d_CD.sum(axis=0)) / root_D
    largest_F = np.max(np.abs(_signs(len(d_CD), seed) @ d_CD) / root_D, axis=1)
    reached_D = np.sum(largest_F[:, None] >= observed_D - 1e-9, axis=0)
    return reached_D / len(largest_F) if len(d_CD) <= EXACT_CLIENTS else (1 + reached_D) / (1 + DRAWS)


def mean_difference_interval(diffs: Values, level: float = 0.95, seed: int = 0) -> Interval:
    """The mean difference and all means that the two-sided sign-flip test does not reject at 1 - level.

    Flipping the clients of a set S turns sum(d - mu) into no less exactly where mean(d over S) <= mu, so the
    one-sided p at mu is (1 + number of sets with a mean <= mu)/2^n, and the ends are the K-th smallest and the
    K-th largest mean over all 2^n - 1 sets, K = floor(2^n (1 - level)/2) (Hartigan's typical values). From
    n = 17 on, 9,999 drawn sets stand for all. Under 6 clients K = 0 at 95 %: the ends are -inf and inf.
    """
    d_C = _values(diffs)
    n = len(d_C)
    flipped_FC = _signs(n, seed) < 0
    size_F = flipped_FC.sum(axis=1)
    chosen = size_F > 0  # flipping nobody reaches any mu: it counts as -inf below and as inf above
    means = np.sort(flipped_FC[chosen] @ d_C / size_F[chosen])
    total = len(size_F) if n <= EXACT_CLIENTS else 1 + DRAWS
    empty = int(np.sum(~chosen)) if n > EXACT_CLIENTS else 0
    k = math.floor(total * (1 - level) / 2 + 1e-9) - empty
    low, high = (float(means[k - 1]), float(means[-k])) if k > 0 else (-math.inf, math.inf)
    return Interval(value=float(d_C.mean()), low=low, high=high, n=n)


def exact_binomial(k: int, n: int, level: float = 0.95) -> Interval:
    """k of n with Clopper-Pearson bounds: low = Beta^-1(a/2; k, n-k+1), high = Beta^-1(1-a/2; k+1, n-k), a = 1 - level.

    `n` counts independent trials here. None of n leaves the upper bound 1 - (a/2)^(1/n).
    """
    if n < 1 or not 0 <= k <= n:
        raise ValueError(f"expected 0 <= k <= n and n >= 1, got k={k}, n={n}")
    a = (1 - level) / 2
    low = float(distributions.beta.ppf(a, k, n - k + 1)) if k else 0.0
    high = float(distributions.beta.ppf(1 - a, k + 1, n - k)) if k < n else 1.0
    return Interval(value=k / n, low=low, high=high, n=n)


def jackknife_t(values_leave_one_out: Values, full: float, level: float = 0.95) -> Interval:
    """full ± t(1 - (1 - level)/2; n - 1) sqrt((n - 1)/n sum (theta_i - mean theta)²), theta_i without client i.

    For any smooth statistic of whole clients (a rating, a kappa). One client alone bounds nothing.
    """
    theta_C = _values(values_leave_one_out)
    n = len(theta_C)
    if n == 1:
        return Interval(value=full, low=-math.inf, high=math.inf, n=1)
    half = float(jackknife_half_widths(theta_C[:, None], level)[0])
    return Interval(value=full, low=full - half, high=full + half, n=n)


def jackknife_half_widths(theta_CK: np.ndarray, level: float = 0.95) -> np.ndarray:
    """jackknife_t for K statistics at once: the half-width of each; needs two clients or more."""
    n = len(theta_CK)
    if n < 2:
        raise ValueError(f"a jackknife needs two clients or more, got {n}")
    variance_K = (n - 1) / n * ((theta_CK - theta_CK.mean(axis=0)) ** 2).sum(axis=0)
    return distributions.t.ppf((1 + level) / 2, n - 1) * np.sqrt(variance_K)


def _values(values: Values, least: float = -math.inf, most: float = math.inf) -> np.ndarray:
    x = np.asarray(values, dtype=float)
    if x.ndim != 1 or len(x) == 0:
        raise ValueError(f"expected one number a client and at least one client, got shape {x.shape}")
    bad = x[~(np.isfinite(x) & (x >= least - 1e-12) & (x <= most + 1e-12))]
    if len(bad):
        raise ValueError(f"expected finite values in [{least}, {most}], got {bad.tolist()}")
    return x


def _signs(n: int, seed: int) -> np.ndarray:
    """Sign vectors [F, C] of +1 and -1: all 2^n up to EXACT_CLIENTS clients, else DRAWS seeded ones."""
    if n <= EXACT_CLIENTS:
        return 1.0 - 2.0 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
    return np.random.default_rng(seed).choice((-1.0, 1.0), size=(DRAWS, n))

"""Win rates at equal length and style: a Bradley-Terry model with covariates, fitted by logistic regression.

    P(A beats B) = s(theta_A - theta_B + beta . (z_A - z_B)),

z the session's features, each with mean 0 and standard deviation 1 over sessions. A contestant's win rate is
mean over the others j of s(theta_i - theta_j): against the whole field, with the features equal; without covariates
it is the raw rate of the same model, so that the two differ by the covariates alone (the idea of length-controlled
AlpacaEval, arXiv 2404.04475, and of style control in Chatbot Arena, for pairwise verdicts). A tie is half a win.
Every coefficient has the ratings' weak prior: one virtual tie (log-F(1, 1)), which keeps it finite.
Beta rests on how verdicts move with a feature among the sessions of one contestant. Where a contestant always speaks at
one length, length and contestant cannot be told apart, and the prior would share the effect out between them: so a
feature of whose variance less than 5 % lies within contestants is left out, and the analysis says so.
Equal length is a way to look at verdicts, not a claim about what caused them.
Intervals hold what clients differ in and nothing else: where all of them agree on a contestant, its interval has no
width, which is no certainty, and the analysis says so (the ratings' intervals hold what such data leave open).
Legend: C clients, M battles, P coefficients (contestants, then features), N contestants.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, logit

from psychepass.schema import Battle, Session
from psychepass.stats import jackknife_half_widths
from psychepass.words import spaced
from tournament.judge import POINTS
from tournament.match_tables import Row

WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
MARKS = re.compile(r"^\s*(?:[-*•#]|\d+[.)])\s|\*\*", re.MULTILINE)
SENTENCE_END = re.compile(r"[.!?…。！？]+|\n")
WITHIN = 0.05
PRIOR_TIES = 1.0  # a coefficient; the weak prior of the ratings
JACKKNIFE_BELOW, RESAMPLES = 30, 1_000
LENGTH = ("log words a reply",)
STYLE = (
    *LENGTH,
    "questions a reply",
    "formatting marks a reply",
    "words a sentence",
    "exclamation marks a reply",
)
MODELS: dict[str, tuple[str, ...]] = {"nothing (raw)": (), "length": LENGTH, "length, style": STYLE}


def features(session: Session) -> dict[str, float]:
    """Length and style of a session's replies, by name."""
    replies = [spaced(t.therapist) for t in session.turns]
    words = sum(len(WORD.findall(r)) for r in replies) / len(replies)
    questions = sum(r.count("?") + r.count("？") for r in replies) / len(replies)
    marks = sum(len(MARKS.findall(r)) for r in replies) / len(replies)
    sentences = sum(max(1, sum(bool(WORD.search(part)) for part in SENTENCE_END.split(r))) for r in replies)
    loud = sum(r.count("!") + r.count("！") for r in replies) / len(replies)
    style = (math.log(1 + words), questions, marks, words * len(replies) / sentences, loud)
    return dict(zip(STYLE, style, strict=True))


def standardised(
    sessions: Mapping[str, Session], names: Sequence[str]
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Session id -> features, and by name the share of each one's variance that lies within contestants.

    Left out: features that do not vary, or hardly within contestants (see WITHIN).
    """
    raw_SF = np.array([[features(s)[f] for f in names] for s in sessions.values()]).reshape(len(sessions), len(names))
    who_S = np.array([s.therapist.name for s in sessions.values()])
    own_SF = np.zeros_like(raw_SF)
    for name in set(who_S):
        own_SF[who_S == name] = raw_SF[who_S == name].mean(axis=0)
    spread_F = np.maximum(raw_SF.std(axis=0), 1e-9)
    within_F = ((raw_SF - own_SF) ** 2).mean(axis=0) / spread_F**2
    kept = within_F >= WITHIN
    scaled_SF = ((raw_SF - raw_SF.mean(axis=0)) / spread_F)[:, kept]
    within = {f: round(float(w), 6) for f, w, k in zip(names, within_F, kept, strict=True) if k}
    return dict(zip(sessions, scaled_SF, strict=True)), within


def controlled_win_rates(
    battles: Sequence[Battle], sessions: Mapping[str, Session], contestants: Sequence[str], seed: int = 0
) -> tuple[list[Row], list[Row]]:
    """Win rates by model and contestant, and the coefficients of the features, both with 95 % intervals over clients.

    Under 30 clients: delete-one-client jackknife with t(C - 1), of win rates on the logit scale. Else the percentiles
    of 1,000 resamples that weigh clients by C Dirichlet(1, …, 1), as the ratings have them.
    """
    clients = sorted({b.profile_id for b in battles})
    client_M = np.array([clients.index(b.profile_id) for b in battles])
    points_M = np.array([POINTS[b.overall.winner] for b in battles])
    weights_BC = _resamples(len(clients), seed)
    rates, coefficients = [], []
    for model, names in MODELS.items():
        scaled, within = standardised(sessions, names)
        x_MP = _design(battles, scaled, contestants)
        beta_P = fit(x_MP, points_M, np.ones(len(battles)))
        beta_BP = np.array([fit(x_MP, points_M, weights_C[client_M], beta_P) for weights_C in weights_BC])
        both = np.vstack([beta_P, beta_BP])
        n = len(contestants)
        count = {"n": len(clients), "battles": len(battles)}
        ends = _intervals(logit(_field_rates(both[:, :n])))
        for name, row in zip(contestants, expit(ends).T, strict=True):
            rates.append({"model": model, "contestant": name, **_named(row), **count})
        for name, row in zip(within, _intervals(both[:, n:]).T, strict=True):
            of = {"model": model, "feature": name, "variance_within_contestants": within[name]}
            coefficients.append({**of, **_named(row), **count})
    return rates, coefficients


def _named(row: np.ndarray) -> dict[str, float]:
    return {name: round(float(x), 6) for name, x in zip(("value", "low", "high"), row, strict=True)}


def _resamples(n_clients: int, seed: int) -> np.ndarray:
    if n_clients < JACKKNIFE_BELOW:
        return 1 - np.eye(n_clients)
    return np.random.default_rng(seed).dirichlet(np.ones(n_clients), size=RESAMPLES) * n_clients


def _intervals(both_BK: np.ndarray) -> np.ndarray:
    """[value, low, high] of K statistics from the whole (row 0) and its resamples."""
    value_K, resampled_BK = both_BK[0], both_BK[1:]
    if len(resampled_BK) < JACKKNIFE_BELOW:
        half_K = jackknife_half_widths(resampled_BK)
        return np.stack([value_K, value_K - half_K, value_K + half_K])
    return np.stack([value_K, *np.percentile(resampled_BK, [2.5, 97.5], axis=0)])


def _field_rates(theta_BN: np.ndarray) -> np.ndarray:
    """Mean probability of winning against each of the others."""
    n = theta_BN.shape[1]
    return (expit(theta_BN[:, :, None] - theta_BN[:, None, :]).sum(axis=2) - 0.5) / (n - 1)


def _design(battles: Sequence[Battle], scaled: Mapping[str, np.ndarray], contestants: Sequence[str]) -> np.ndarray:
    """x_MP: +1 for the contestant at A, -1 for the one at B, then the difference of the features."""
    position = {name: i for i, name in enumerate(contestants)}
    x_MN = np.zeros((len(battles), len(contestants)))
    for row, b in zip(x_MN, battles, strict=True):
        row[position[b.contestant_a]], row[position[b.contestant_b]] = 1, -1
    return np.hstack([x_MN, np.array([scaled[b.session_a] - scaled[b.session_b] for b in battles])])


def fit(x_MP: np.ndarray, y_M: np.ndarray, weight_M: np.ndarray, start_P: np.ndarray | None = None) -> np.ndarray:
    """Coefficients of the weighted logistic regression of y in [0, 1] on x, with one virtual tie a coefficient.

    Raises:
        RuntimeError: no convergence.
    """
    x = np.vstack([x_MP, np.eye(x_MP.shape[1])])
    y = np.append(y_M, np.full(x_MP.shape[1], 0.5))
    w = np.append(weight_M, np.full(x_MP.shape[1], PRIOR_TIES))

    def loss(beta_P: np.ndarray) -> tuple[float, np.ndarray]:
        d = x @ beta_P
        return float(np.sum(w * (np.logaddexp(0, d) - y * d))), x.T @ (w * (expit(d) - y))

    def curvature(beta_P: np.ndarray) -> np.ndarray:
        d = x @ beta_P
        return (x * (w * expit(d) * expit(-d))[:, None]).T @ x

    start = np.zeros(x.shape[1]) if start_P is None else start_P
    found = minimize(loss, start, jac=True, hess=curvature, method="trust-exact", options={"gtol": 1e-7 * len(y)})
    if not found.success:
        raise RuntimeError(f"logistic regression did not converge: {found.message}")
    return found.x

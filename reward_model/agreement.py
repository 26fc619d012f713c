"""Does the reward model rank the contestants as the tournament did? Pure functions. Legend: C clients, N contestants.

A contestant's reward with a client is the mean over the rewarded dimensions of the mean reward of the replies
that stand for them, over the test sessions of both (several seeds are averaged). All contestants meet the same
lines of a client, so rewards are compared within a client: its mean over contestants is taken away first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from psychepass.schema import Session
from psychepass.stats import win_score_interval
from reward_model.accuracy import Rewards, row_of
from reward_model.data import Ask
from training.pairs import REWARDED

RESAMPLES = 1_000


def asks_of(sessions: Iterable[Session]) -> dict[str, dict[Ask, None]]:
    """The rewards that `mean_rewards` reads, by session."""
    return {s.id: {Ask(t, d): None for d in REWARDED for t in s.reply_turns(d)} for s in sessions}


def mean_rewards(sessions: Iterable[Session], rewards: Rewards) -> dict[str, dict[str, float]]:
    """client -> contestant -> mean reward."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for session in sessions:
        by_dimension = [
            np.mean([rewards[session.id, Ask(t, d)] for t in turns])
            for d in REWARDED
            if (turns := session.reply_turns(d))
        ]
        found[session.profile_id][session.therapist.name].append(float(np.mean(by_dimension)))
    return {client: {name: float(np.mean(v)) for name, v in of.items()} for client, of in found.items()}


def kendall_tau(x_N: np.ndarray, y_N: np.ndarray) -> float:
    """(pairs in the same order - pairs in the opposite order) / pairs, a tie counting 0 (tau-a); NaN is left out."""
    known = ~(np.isnan(x_N) | np.isnan(y_N))
    x_N, y_N = x_N[known], y_N[known]
    above = np.triu_indices(len(x_N), 1)
    same = np.sign(x_N[:, None] - x_N) * np.sign(y_N[:, None] - y_N)
    return float(same[above].mean())


def rank_agreement(
    means: Mapping[str, Mapping[str, float]], ratings: Mapping[str, float], seed: int = 0
) -> dict[str, Any] | None:
    """Kendall's tau between mean reward and rating; None with fewer than two contestants or clients.

    `of_means`: tau of the mean over clients, with the percentiles of 1,000 seeded reweightings of the clients
    (Dirichlet; with few clients such an interval is too narrow). `within_client`: the mean of the clients' own
    taus, with the t interval that is honest at few clients (psychepass.stats.win_score_interval). The ratings
    stand fixed. `n` counts contestants.
    """
    clients = [c for c in sorted(means) if len(means[c].keys() & ratings.keys()) > 1]
    names = sorted({n for c in clients for n in means[c]} & ratings.keys())
    if len(clients) < 2 or len(names) < 2:
        return None
    reward_CN = np.array([[means[c].get(n, np.nan) for n in names] for c in clients])
    reward_CN -= np.nanmean(reward_CN, axis=1, keepdims=True)
    rating_N = np.array([ratings[n] for n in names])

    def tau(weight_C: np.ndarray) -> float:
        mass_CN = np.where(np.isnan(reward_CN), 0.0, weight_C[:, None])
        return kendall_tau((mass_CN * np.nan_to_num(reward_CN)).sum(axis=0) / mass_CN.sum(axis=0), rating_N)

    draws = np.random.default_rng(seed).dirichlet(np.ones(len(clients)), size=RESAMPLES)
    low, high = np.quantile([tau(w) for w in draws], [0.025, 0.975])
    own = win_score_interval([kendall_tau(row, rating_N) for row in reward_CN])
    return {
        "of_means": {"value": tau(np.ones(len(clients))), "low": float(low), "high": float(high)}
        | {"n": len(names), "n_clients": len(clients)},
        "within_client": row_of(own, len(names)),
    }

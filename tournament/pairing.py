"""Which contestants meet next: Swiss (the default), round robin, or the most informative matches.

All three share one interface: `waves` says which clients are planned together, `next_round` plans their next round
from what the contestants have done so far: with this client, and for adaptive pairing with all of them. Both are pure
functions, so the matches of a wave may be judged in any order, or all at once, and a run that was killed plans the same
again.

Adaptive: the most informative match is the one whose verdict is expected to narrow the ratings' intervals most, i.e.
to lower the sum of the ratings' posterior variances (A-optimal design). The model is the intervals' own: verdicts of
one client depend on each other. With client c contestant i has the strength theta_i + u_ci, u_ci ~ Normal(0, 0.7²)
(CLIENT_SPREAD, assumed). By Laplace's approximation at the Bradley-Terry maximum over all matches so far
(ratings.fit, its weak prior included) and at the mode of the client's u, the gain of a match of client c is

    w |A e|² / (1 + w v),    e = e_i - e_j,  a = (e, e),  A e = the theta part of K a,  v = a' K a,

K the covariance of (theta, u_c) and w = E s(d) s(-d) its expected information, s the logistic function and
d ~ Normal(theta_i + u_ci - theta_j - u_cj, v). So it grows where ratings are uncertain, and shrinks where the outcome
with this client is foreseen or the client has told its part. Client by client the match with the largest gain is
planned, each contestant at most once a round and never a rematch within a client, and counted at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
from scipy.special import expit

from tournament import ratings, swiss
from tournament.swiss import NOBODY, Round, Standings

PairingName = Literal["swiss", "round_robin", "adaptive"]
PRIOR_TIES = 1.0  # the weak prior of the ratings
CLIENT_SPREAD = 0.7  # standard deviation of a client's effect on a contestant, natural scale
WAVE = 8  # clients that adaptive pairing plans together: later ones learn from their verdicts
NODES, NODE_WEIGHTS = np.polynomial.hermite_e.hermegauss(15)


def most_rounds(contestants: int) -> int:
    """Rounds until everybody has met everybody once: N - 1, and N in an odd field, where one rests a round."""
    return contestants - 1 + contestants % 2


def rounds_of(name: PairingName, contestants: int, rounds: int | None = None) -> int:
    """Rounds of a client with so many contestants: `rounds`, or the pairing's own, ceil(log2 N) and for round robin
    all; never more than most_rounds, after which only rematches are left."""
    own = most_rounds(contestants) if name == "round_robin" else swiss.rounds_for(contestants)
    return min(own if rounds is None else rounds, most_rounds(contestants))


def matches_of(name: PairingName, contestants: int, rounds: int | None = None) -> int:
    """Matches of a client with so many contestants; adaptive pairing may plan fewer, never more."""
    return rounds_of(name, contestants, rounds) * (contestants // 2)


def waves(name: PairingName, clients: Sequence[str]) -> list[list[str]]:
    """The clients of a round in the groups that are planned together, one group after the other."""
    size = WAVE if name == "adaptive" else max(1, len(clients))
    return [list(clients[i : i + size]) for i in range(0, len(clients), size)]


def next_round(
    name: PairingName, tables: Mapping[str, Standings], clients: Sequence[str], seed: int, round: int
) -> dict[str, Round]:
    """Round `round` (from 1) of each of `clients`; `tables` holds what their contestants did so far, and for adaptive
    pairing those of every client."""
    if name == "adaptive":
        return _adaptive(tables, clients, seed, round)
    pair = swiss.pair if name == "swiss" else circle
    return {client: pair(tables[client], seed, client, round) for client in clients}


def circle(standings: Standings, seed: int, client: str, round: int) -> Round:
    """Round robin by the circle method: the first stays, the others move on one place a round."""
    seat = swiss.lots(seed, client, 0)
    names = sorted(standings.points, key=lambda name: seat(name))
    if len(names) % 2:
        names.append(NOBODY)
    shift = (round - 1) % (len(names) - 1)
    seats = [names[0], *names[1 + shift :], *names[1 : 1 + shift]]
    pairs = list(zip(seats[: len(seats) // 2], reversed(seats), strict=False))
    draw = swiss.lots(seed, client, round)
    bye = next((a or b for a, b in pairs if NOBODY in (a, b)), None)
    return Round(tuple(sorted(swiss.presented(a, b, draw) for a, b in pairs if NOBODY not in (a, b))), bye)


def _adaptive(tables: Mapping[str, Standings], clients: Sequence[str], seed: int, round: int) -> dict[str, Round]:
    names = sorted({name for table in tables.values() for name in table.points})
    order = {client: c for c, client in enumerate(tables)}
    theta_N, effect_CN, own_CNN = posterior(names, list(tables.values()))
    prior_N = PRIOR_TIES * expit(theta_N) * expit(-theta_N)
    told_NN = np.diag(prior_N) + told(own_CNN).sum(axis=0)
    planned = {}
    for client in clients:
        own_NN = own_CNN[order[client]]
        others_NN = told_NN - told(own_NN)
        strength_N, draw = theta_N + effect_CN[order[client]], swiss.lots(seed, client, round)
        planned[client], own_NN = _most_informative(names, strength_N, others_NN, own_NN, tables[client], draw)
        told_NN = others_NN + told(own_NN)
    return planned


def posterior(names: Sequence[str], tables: Sequence[Standings]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """theta_N at the Bradley-Terry maximum with its weak prior; effect_CN, the mode of each client's u given theta;
    and own_CNN, the information about theta + u_c in each client's verdicts."""
    position = {name: i for i, name in enumerate(names)}
    wins_CNN = np.zeros((len(tables), len(names), len(names)))
    for wins_NN, table in zip(wins_CNN, tables, strict=True):
        for a, b, points_a in table.results:
            wins_NN[position[a], position[b]] += points_a
            wins_NN[position[b], position[a]] += 1 - points_a
    theta_N = ratings.fit(wins_CNN.sum(axis=0)[None], prior_ties=PRIOR_TIES)[0]
    counts_CNN = wins_CNN + wins_CNN.swapaxes(1, 2)
    effect_CN = np.zeros(wins_CNN.shape[:2])
    for _ in range(50):
        strength_CN = theta_N + effect_CN
        win_CNN = expit(strength_CN[:, :, None] - strength_CN[:, None, :])
        weight_CNN = counts_CNN * win_CNN * (1 - win_CNN)
        own_CNN = np.eye(len(names)) * weight_CNN.sum(axis=2)[:, :, None] - weight_CNN
        gradient_CN = (counts_CNN * win_CNN - wins_CNN).sum(axis=2) + effect_CN / CLIENT_SPREAD**2
        step_CN = np.linalg.solve(own_CNN + np.eye(len(names)) / CLIENT_SPREAD**2, gradient_CN[..., None])[..., 0]
        effect_CN = effect_CN - step_CN
        if np.abs(step_CN).max() < 1e-9:
            return theta_N, effect_CN, own_CNN
    raise RuntimeError(f"client effects did not converge: last step {np.abs(step_CN).max():.3g}")


def told(own_NN: np.ndarray) -> np.ndarray:
    """What a client's verdicts tell about theta: own - own (own + I/spread²)^-1 own, its effect integrated out."""
    return own_NN - own_NN @ np.linalg.solve(own_NN + np.eye(own_NN.shape[-1]) / CLIENT_SPREAD**2, own_NN)


def gains(strength_N: np.ndarray, others_NN: np.ndarray, own_NN: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """gain_NN, by how much each match of a client is expected to lower the sum of the variances of theta, and its
    weight_NN w. `others_NN` is what all but this client tell about theta, `own_NN` the information in its verdicts."""
    n = len(strength_N)
    precision = np.block([[others_NN + own_NN, own_NN], [own_NN, own_NN + np.eye(n) / CLIENT_SPREAD**2]])
    covariance = np.linalg.inv(precision)
    moves_NN = covariance[:n, :n] + covariance[:n, n:]
    variance_NN = _squared_distance(moves_NN + covariance[n:, :n] + covariance[n:, n:])
    reach_NN = _squared_distance(moves_NN.T @ moves_NN)
    draws_NNQ = (strength_N[:, None] - strength_N)[..., None] + np.sqrt(variance_NN)[..., None] * NODES
    weight_NN = (expit(draws_NNQ) * expit(-draws_NNQ)) @ (NODE_WEIGHTS / NODE_WEIGHTS.sum())
    return weight_NN * reach_NN / (1 + weight_NN * variance_NN), weight_NN


def _squared_distance(matrix_NN: np.ndarray) -> np.ndarray:
    """e' M e for every e = e_i - e_j."""
    diagonal_N = np.diag(matrix_NN)
    return np.maximum(diagonal_N[:, None] + diagonal_N - 2 * matrix_NN, 0)


def _most_informative(
    names: Sequence[str],
    strength_N: np.ndarray,
    others_NN: np.ndarray,
    own_NN: np.ndarray,
    table: Standings,
    draw: Callable[..., int],
) -> tuple[Round, np.ndarray]:
    """One client's round, and its information with these matches counted. Equal gains are drawn by lot."""
    free = set(table.points)
    pairs: list[tuple[str, str]] = []
    while True:
        open_pairs = [
            (i, j, draw(b, a))
            for i, a in enumerate(names)
            for j, b in enumerate(names[:i])
            if a in free and b in free and not table.met[frozenset((a, b))]
        ]
        if not open_pairs:
            break
        gain_NN, weight_NN = gains(strength_N, others_NN, own_NN)
        gain_NN = np.round(gain_NN / gain_NN.max(), 9)
        i, j, _ = max(open_pairs, key=lambda pair: (gain_NN[pair[0], pair[1]], pair[2]))
        pairs.append(swiss.presented(names[i], names[j], draw))
        free -= {names[i], names[j]}
        e_N = np.eye(len(names))[i] - np.eye(len(names))[j]
        own_NN = own_NN + weight_NN[i, j] * np.outer(e_N, e_N)
    return Round(tuple(sorted(pairs)), free.pop() if len(free) == 1 else None), own_NN

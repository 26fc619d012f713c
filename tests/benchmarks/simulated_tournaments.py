"""Swiss tournaments with a made-up judge: clients have their own view of every contestant, and verdicts are drawn.

Legend: C clients, K columns, N contestants.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tournament import swiss
from tournament.bradley_terry import fit, fit_davidson

TIE_ODDS = 0.5  # nu of the verdicts drawn
ORDERS = 2


class Population(NamedTuple):
    """Clients to draw tournaments from: half-wins wins_CKNN and ties_CK of each one's own Swiss tournament."""

    wins_CKNN: np.ndarray
    ties_CK: np.ndarray

    def draw(self, clients: int, rng: np.random.Generator) -> Population:
        """A tournament with so many clients, drawn with replacement: what many tournaments of so many clients
        approach is then known exactly, from the population's mean."""
        drawn = rng.integers(0, len(self.wins_CKNN), clients)
        return Population(self.wins_CKNN[drawn], self.ties_CK[drawn])

    def large_sample_theta(self, clients: int, davidson: bool) -> np.ndarray:
        """theta_N of column 0 that the estimator tends to: its fit, with the same prior, of the mean counts."""
        wins_1NN = self.wins_CKNN[:, 0].mean(axis=0, keepdims=True) * clients
        if davidson:
            return fit_davidson(wins_1NN, self.ties_CK[:, 0].mean(keepdims=True) * clients)[0][0]
        return fit(wins_1NN)[0]


def population(clients: int, strength_KN: np.ndarray, client_sd: float, seed: int = 0) -> Population:
    """Each client shifts every contestant's strength by a normal draw of its own in every column; column 0 pairs.

    Strengths are in natural units (1 is odds of e to 1); a match is judged in both orders by Davidson's model.
    """
    rng = np.random.default_rng(seed)
    columns, contestants = strength_KN.shape
    wins_CKNN = np.zeros((clients, columns, contestants, contestants))
    ties_CK = np.zeros((clients, columns))
    names = [f"{i:03}" for i in range(contestants)]
    for c in range(clients):
        theta_KN = strength_KN + rng.normal(0, client_sd, size=strength_KN.shape)
        standings = swiss.Standings.of(names)
        for round in range(1, swiss.rounds_for(contestants) + 1):
            for a, b in swiss.pair(standings, seed, str(c), round).pairs:
                i, j = int(a), int(b)
                points_K, tied_K = _match(theta_KN[:, i] - theta_KN[:, j], rng)
                wins_CKNN[c, :, i, j] += points_K
                wins_CKNN[c, :, j, i] += ORDERS - points_K
                ties_CK[c] += tied_K
                standings.record(a, b, points_K[0] / ORDERS)
    return Population(wins_CKNN, ties_CK)


def _match(gap_K: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Half-wins of the first contestant and ties in each column, both orders together."""
    odds_K3 = np.column_stack([np.exp(gap_K / 2), np.exp(-gap_K / 2), np.full(len(gap_K), TIE_ODDS)])
    ends_K3 = np.cumsum(odds_K3 / odds_K3.sum(axis=1, keepdims=True), axis=1)
    draw_KO = rng.random((len(gap_K), ORDERS))
    won_KO, tied_KO = draw_KO < ends_K3[:, [0]], draw_KO >= ends_K3[:, [1]]
    return (won_KO + tied_KO / 2).sum(axis=1), tied_KO.sum(axis=1)


def without_maximum(rng: np.random.Generator, kind: str, clients: int = 8) -> np.ndarray:
    """wins_C1NN of a random field of 4 to 12 that falls into two groups. separable: the first won all that they
    played against each other; disconnected: they played nothing; ok: the second won once as well."""
    least = 2 if kind == "disconnected" else 1  # nobody is without a battle
    n = int(rng.integers(4, 13))
    split = int(rng.integers(least, n - least + 1))
    played_CNN = np.triu(rng.poisson(1.0, size=(clients, n, n)), 1)
    played_CNN[0] += np.triu(np.ones((n, n), dtype=int), 1)  # within its group everybody met everybody
    wins_CNN = rng.binomial(played_CNN, rng.uniform(0.3, 0.7)).astype(float)
    wins_CNN += (played_CNN - wins_CNN).swapaxes(1, 2)
    for first, last in ((0, split), (split, n)):  # a round of wins through each group keeps it whole
        for i in range(first, last):
            wins_CNN[0, i, first + (i + 1 - first) % (last - first)] += i != first + (i + 1 - first) % (last - first)
    wins_CNN[:, split:, :split] = 0
    if kind == "disconnected":
        wins_CNN[:, :split, split:] = 0
    else:
        wins_CNN[0, 0, split] += 1
    if kind == "ok":
        wins_CNN[-1, n - 1, 0] += 1
    order = rng.permutation(n)
    return wins_CNN[:, None][:, :, order][..., order]

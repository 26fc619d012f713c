"""How ratings settle round by round, and Swiss against round robin (PsychePass, section 5.1 and Figure 4).

The unit is the client: every figure is made from all clients' battles of the rounds so far, with intervals over
clients. Where every pair of a client's contestants met, the other pairings are replayed on the recorded verdicts:
the same battles, in the order and the number that the pairing would have asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import kendalltau

from psychepass.schema import Battle
from tournament import pairing, ratings
from tournament.judge import points_of
from tournament.match_tables import Row
from tournament.pairing import PairingName
from tournament.swiss import Standings

RESAMPLES = 1_000
Rounds = list[list[Battle]]  # the battles of round 1, 2, …


def rounds_of(battles: Sequence[Battle]) -> Rounds:
    """A run's battles by the round in which they were judged."""
    last = max(b.round for b in battles)
    return [[b for b in battles if b.round == number] for number in range(1, last + 1)]


def everybody_met(battles: Sequence[Battle]) -> bool:
    """Whether every client's contestants have all met."""
    return all(len(of) == len(list(combinations(frozenset().union(*of), 2))) for of in _matches(battles).values())


def _matches(battles: Sequence[Battle]) -> dict[str, dict[frozenset[str], list[Battle]]]:
    """Client -> contestants -> the battles of their match."""
    found: dict[str, dict[frozenset[str], list[Battle]]] = {}
    for b in battles:
        found.setdefault(b.profile_id, {}).setdefault(frozenset((b.contestant_a, b.contestant_b)), []).append(b)
    return found


def replay(name: PairingName, battles: Sequence[Battle], seed: int) -> Rounds:
    """The rounds that a pairing would have asked for, answered from battles in which everybody met."""
    matches = _matches(battles)
    tables = {client: Standings.of(frozenset().union(*of)) for client, of in matches.items()}
    last = {client: pairing.rounds_of(name, len(table.points)) for client, table in tables.items()}
    played: Rounds = []
    for number in range(1, max(last.values()) + 1):
        played.append([])
        for wave in pairing.waves(name, [c for c in sorted(tables) if number <= last[c]]):
            for client, planned in pairing.next_round(name, tables, wave, seed, number).items():
                for a, b in planned.pairs:
                    match = matches[client][frozenset((a, b))]
                    seen = next(m for m in match if a in (m.contestant_a, m.contestant_b))
                    session = seen.session_a if seen.contestant_a == a else seen.session_b
                    tables[client].record(a, b, points_of(session, match))
                    played[-1] += match
                if planned.bye:
                    tables[client].record_bye(planned.bye)
    return played


def ratings_by_round(
    design: str, rounds: Rounds, contestants: Sequence[str], seed: int = 0, ties: ratings.Ties = "half"
) -> list[Row]:
    """A row a round and contestant: its overall rating from the rounds so far, with its interval. A round after which
    somebody has no battle yet, or one client alone has any (judgements can fail), has no rows. `ties` as in the run's
    own ratings, which the last round then equals."""
    rows = []
    for number in range(1, len(rounds) + 1):
        so_far = [b for of_round in rounds[:number] for b in of_round]
        if len({n for b in so_far for n in (b.contestant_a, b.contestant_b)}) < len(contestants):
            continue
        clients, wins_CKNN = ratings.wins_by_client(so_far, contestants)
        if len(clients) < 2:
            continue
        ties_CK = ratings.ties_by_client(so_far)[:, :1] if ties == "davidson" else None
        table = ratings.rate(wins_CKNN[:, :1], contestants, columns=["overall"], seed=seed, ties_CK=ties_CK)
        for row in table.ratings["overall"]:
            place = {"design": design, "round": number, "battles": 2 * len(so_far) / len(contestants)}
            ends = {"value": row.rating, "low": row.low, "high": row.high, "n": len(clients)}
            rows.append({**place, "contestant": row.contestant, **ends})
    return rows


def agreement_by_round(
    design: str,
    rounds: Rounds,
    reference: Sequence[Battle],
    contestants: Sequence[str],
    seed: int = 0,
    ties: ratings.Ties = "half",
) -> list[Row]:
    """A row a round: Kendall's tau of the ranking so far with the reference's.

    The interval holds 95 % of 1,000 resamples that weigh the clients of both by one Dirichlet(1, …, 1) draw; tau is
    cut at 1, so it may be one-sided. A round whose ratings are all equal ranks nobody and has no row.
    """
    clients = sorted({b.profile_id for b in reference})
    weights_BC = np.random.default_rng(seed).dirichlet(np.ones(len(clients)), size=RESAMPLES) * len(clients)
    weights_BC = np.vstack([np.ones(len(clients)), weights_BC])
    final_BN = _theta(weights_BC, reference, contestants, ties)
    rows = []
    for number in range(1, len(rounds) + 1):
        so_far = [b for of_round in rounds[:number] for b in of_round]
        of = sorted({b.profile_id for b in so_far})
        theta_BN = _theta(weights_BC[:, [clients.index(c) for c in of]], so_far, contestants, ties)
        taus = [_tau(x, y) for x, y in zip(theta_BN, final_BN, strict=True)]
        if not np.isfinite(taus).all():
            continue
        low, high = np.quantile(taus[1:], [0.025, 0.975])
        place = {"design": design, "round": number, "battles": 2 * len(so_far) / len(contestants)}
        rows.append({**place, "value": taus[0], "low": float(low), "high": float(high), "n": len(of)})
    return rows


def _tau(x_N: np.ndarray, y_N: np.ndarray) -> float:
    result: Any = kendalltau(x_N, y_N)
    return round(float(result.statistic), 9)


def _theta(
    weights_BC: np.ndarray, battles: Sequence[Battle], contestants: Sequence[str], ties: ratings.Ties
) -> np.ndarray:
    """theta_BN of the overall verdicts; the weights are of the battles' clients in name order."""
    _, wins_CKNN = ratings.wins_by_client(battles, contestants)
    wins_BNN = np.tensordot(weights_BC, wins_CKNN[:, 0], axes=1)
    if ties == "half":
        return ratings.fit(wins_BNN)
    return ratings.fit_davidson(wins_BNN, weights_BC @ ratings.ties_by_client(battles)[:, 0])[0]

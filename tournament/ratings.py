"""Ratings of contestants with intervals over clients (PsychePass, section 3.2.3 and Algorithm 1).

P(i beats j) = 1/(1 + exp(-(r_i - r_j)/xi)), xi = 400/ln 10; ratings are r = 100 + xi theta with mean 100.
Departures: the estimate is the converged maximum (the paper descends a gradient for a while), with the weak prior of
tournament/bradley_terry.py: one virtual tie of every contestant against an opponent at the baseline. It keeps
ratings finite where a contestant has won or lost everything. A tie counts as half a win for each, or by Davidson's
model. Legend: B resamples, C clients, K columns (overall, then the 12 dimensions), N contestants.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from psychepass.errors import UserError
from psychepass.schema import Battle, Dimension, JudgeIdentity, Rating, Verdict
from tournament import rating_intervals as intervals
from tournament.bradley_terry import Graph, connected, fit, fit_davidson, left_open, win_graph

BASELINE = 100.0
XI = 400 / math.log(10)
COLUMNS: tuple[str, ...] = ("overall", *(d.value for d in Dimension))
HALF_WINS = {"A": (1.0, 0.0), "tie": (0.5, 0.5), "B": (0.0, 1.0)}
Ties = Literal["half", "davidson"]


def one_judge(judges: Iterable[tuple[str, JudgeIdentity]]) -> None:
    """Verdicts of different judges, prompts or rubric versions make no common rating; `judges` by battle id.

    Raises:
        UserError: two battles whose judges differ, and in what.
    """
    first: tuple[str, JudgeIdentity] | None = None
    for battle, judge in judges:
        first = first or (battle, judge)
        if judge != first[1]:
            ours, theirs = first[1].model_dump(), judge.model_dump()
            differs = [f"{key} {ours[key]!r} and {theirs[key]!r}" for key in ours if ours[key] != theirs[key]]
            raise UserError(
                f"battles.jsonl: the judges of {first[0]} and of {battle} differ: {'; '.join(differs)}; "
                f"one ranking has one judge, one prompt and one rubric version"
            )


def wins_by_client(battles: Sequence[Battle], contestants: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Clients in name order, and wins_CKNN: how often contestant i beat j, a tie being half for each.

    Raises:
        UserError: battles of more than one judge.
    """
    one_judge((f"battle {b.id}", b.judge) for b in battles)
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


def ties_by_client(battles: Sequence[Battle]) -> np.ndarray:
    """ties_CK: how many verdicts of each client, in name order, were ties."""
    clients = sorted({b.profile_id for b in battles})
    row = {client: c for c, client in enumerate(clients)}
    ties_CK = np.zeros((len(clients), len(COLUMNS)))
    for battle in battles:
        ties_CK[row[battle.profile_id]] += [verdict(battle, name).winner == "tie" for name in COLUMNS]
    return ties_CK


def verdict(battle: Battle, column: str) -> Verdict:
    """Overall or of one dimension."""
    return battle.overall if column == "overall" else battle.verdicts[Dimension(column)]


@dataclass(frozen=True)
class Table:
    """Ratings of all columns, on the scale of baseline 100 and 400/ln 10.

    `method` names the interval; `graph` has the flag of each column, and `resamples_flagged` the share of its
    resamples (under 30 clients one client left out, else as many drawn with replacement) whose win graph is not
    strongly connected. `groups`: the contestants that cannot be told apart, best first; one may stand in several.
    `nu` is Davidson's tie parameter by column, None where a tie is half a win for each.
    """

    ratings: dict[str, list[Rating]]
    graph: dict[str, Graph]
    resamples_flagged: dict[str, float]
    groups: dict[str, list[list[str]]]
    method: intervals.Method
    nu: dict[str, float] | None = None


def rate(
    wins_CKNN: np.ndarray,
    contestants: Sequence[str],
    columns: Sequence[str] = COLUMNS,
    seed: int = 0,
    ties_CK: np.ndarray | None = None,
) -> Table:
    """Ratings with 95 % intervals over clients, rank intervals and groups (rating_intervals.spread), best first.

    With ties_CK, the number of ties among the verdicts, by Davidson's model. Where the graph is not ok, intervals also
    hold what the data leave open (bradley_terry.left_open), and show the prior as much as the data; where all verdicts
    are ties they have no width and show nothing (see the tie rate).

    Raises:
        ValueError: fewer than two clients or contestants, two of one name, or a contestant without a battle.
    """
    _check(wins_CKNN, contestants)
    method = intervals.method_for(len(wins_CKNN))
    wins_KNN = wins_CKNN.sum(axis=0)
    full_KN, nu_K = _fitted(wins_KNN, None if ties_CK is None else ties_CK.sum(axis=0))
    weights_BC = intervals.client_weights(len(wins_CKNN), seed)
    theta_BKN = _refitted(weights_BC, wins_CKNN, ties_CK, full_KN)
    ratings, groups = {}, {}
    met_KNN = (wins_CKNN + wins_CKNN.swapaxes(2, 3) > 0).sum(axis=0)  # two orders of one match are not independent
    for k, column in enumerate(columns):
        full_N, resampled_BN = rating_scale(full_KN[k]), rating_scale(theta_BKN[:, k])
        open_NN = XI**2 * left_open(full_KN[k], wins_KNN[k], met_KNN[k], 0.0 if nu_K is None else float(nu_K[k]))
        of = intervals.spread(full_N, resampled_BN, len(wins_CKNN), seed, open_NN)
        numbers = (full_N, of.low_N, of.high_N, of.rank_low_N, of.rank_high_N)
        ratings[column] = _rows(contestants, wins_KNN[k], *numbers)
        ranking = [list(contestants).index(r.contestant) for r in ratings[column]]
        groups[column] = [[contestants[i] for i in g] for g in intervals.groups(ranking, of.apart_NN)]
    if method == "dirichlet-bootstrap":
        weights_BC = intervals.multinomial_weights(len(wins_CKNN), seed=seed)
    lost_BK = [~connected(of_resample) for of_resample in np.tensordot(weights_BC, wins_CKNN, axes=1)]
    return Table(
        ratings=ratings,
        graph={column: win_graph(wins_KNN[k]) for k, column in enumerate(columns)},
        resamples_flagged=dict(zip(columns, np.mean(lost_BK, axis=0).tolist(), strict=True)),
        groups=groups,
        method=method,
        nu=None if nu_K is None else {column: round(float(nu_K[k]), 6) for k, column in enumerate(columns)},
    )


def _check(wins_CKNN: np.ndarray, contestants: Sequence[str]) -> None:
    if len(wins_CKNN) < 2:
        raise ValueError(f"intervals over clients need two clients or more, got {len(wins_CKNN)}")
    if len(contestants) < 2:
        raise ValueError(f"a rating needs two contestants or more, got {len(contestants)}")
    if len(set(contestants)) < len(contestants):
        raise ValueError(f"two contestants have one name among {', '.join(contestants)}")
    idle_N = wins_CKNN.sum(axis=(0, 1, 3)) + wins_CKNN.sum(axis=(0, 1, 2)) == 0
    if idle_N.any():
        raise ValueError(f"no judged battle of {', '.join(np.array(contestants)[idle_N])}")


def _fitted(
    wins_BNN: np.ndarray, ties_B: np.ndarray | None, start_BN: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """theta_BN, and nu_B where the ties have a model."""
    if ties_B is None:
        return fit(wins_BNN, start_BN=start_BN), None
    return fit_davidson(wins_BNN, ties_B, start_BN=start_BN)


def _refitted(
    weights_BC: np.ndarray, wins_CKNN: np.ndarray, ties_CK: np.ndarray | None, full_KN: np.ndarray
) -> np.ndarray:
    """theta_BKN of the weighted clients, all resamples and columns in one batch of counts."""
    wins_BKNN = np.tensordot(weights_BC, wins_CKNN, axes=1)
    flat_BNN = wins_BKNN.reshape(-1, *wins_BKNN.shape[2:])
    ties_B = None if ties_CK is None else (weights_BC @ ties_CK).ravel()
    theta_BN, _ = _fitted(flat_BNN, ties_B, np.tile(full_KN, (len(weights_BC), 1)))
    return theta_BN.reshape(wins_BKNN.shape[:3])


def rating_scale(theta: np.ndarray) -> np.ndarray:
    """Natural scale to ratings."""
    return BASELINE + XI * theta


def _rows(contestants: Sequence[str], wins_NN: np.ndarray, *numbers_N: np.ndarray) -> list[Rating]:
    battles_N = (wins_NN + wins_NN.T).sum(axis=1)
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

"""Pairing on simulated tournaments: Swiss keeps its rules, ranks as round robin does, and what battles are saved.

    python -m tests.benchmarks.pairing --quick --json pairing.json        # under a minute of one core
    python -m tests.benchmarks.pairing --part rank6 --part rank12      # or rules, width6, width12; all by default

A verdict of client c is a draw: contestant i beats j with P = s(theta_ci - theta_cj), theta_ci = theta_i + a normal
client effect of standard deviation 0.7 (in theta, natural scale), and 5 % of the verdicts are ties. All verdicts of a
simulated tournament are drawn before any pairing, so that the designs meet the same clients and the same verdicts; a
round robin sees them all. Separations: neighbours win with the stated probability before client effects, evenly
spaced; or the contestants have the win rates of PsychePass's Table 2 in a round robin ("table 2"; its 6 are ranks
1, 3, 5, ..., 11, for the paper does not name its own). A battle is a match here: one verdict.

rules  fields of 2 to 33 contestants: avoidable rematches, differences of byes (exact binomial bounds).
rank   Kendall's tau of the ranking by Swiss with the round robin's, and of both with the truth.
width  mean width of the 95 % intervals of ratings.rate, round by round; battles that adaptive pairing and a round
       robin's prefix need for the width that Swiss has after ceil(log2 N) rounds (log-log interpolation between
       rounds); and how many intervals hold the mean of all simulated ratings of their design.
Figures but for shares are means over simulated tournaments with t intervals over them, n.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import combinations
from typing import NamedTuple

import networkx as nx
import numpy as np
from scipy.optimize import root
from scipy.special import expit, logit
from scipy.stats import kendalltau, t

from psychepass.stats import exact_binomial
from tests.benchmarks.figures import Figure, benchmark_parser
from tournament import pairing, ratings, swiss
from tournament.pairing import PairingName
from tournament.swiss import Standings

TABLE_2 = (0.8230, 0.7548, 0.7501, 0.6967, 0.5527, 0.5036, 0.4624, 0.4562, 0.4365, 0.2681, 0.2093, 0.0477)
CLIENT_SPREAD, TIES = 0.7, 0.05
PARTS = ("rules", "rank6", "rank12", "width6", "width12")


def mean(name: str, values: Iterable[float], most: float = np.inf) -> Figure:
    """Mean with its 95 % t interval over independent tournaments, cut at `most`."""
    x = np.array([v for v in values if np.isfinite(v)])
    half = t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x)) if len(x) > 1 else float("nan")
    return Figure(name, float(x.mean()), float(x.mean() - half), float(min(most, x.mean() + half)), len(x))


def ratio(name: str, values: Iterable[float]) -> Figure:
    """Geometric mean of ratios, with its interval."""
    logs = mean(name, np.log(np.array(list(values))))
    return Figure(name, *(float(np.exp(x)) for x in logs[1:4]), logs.n)


# --- rules -------------------------------------------------------------------------------------------------------


def rules(seeds: int) -> Iterator[Figure]:
    broken, uneven, tournaments = 0, 0, 0
    for n in range(2, 34):
        for seed in range(seeds):
            rematches, difference = one_field(n, seed)
            broken, uneven, tournaments = broken + (rematches > 0), uneven + (difference > 1), tournaments + 1
    for what, count in (("an avoidable rematch", broken), ("byes that differ by more than one", uneven)):
        ends = exact_binomial(count, tournaments)
        yield Figure(f"rules: share of tournaments with {what}", ends.value, ends.low, ends.high, tournaments)


def one_field(n: int, seed: int) -> tuple[int, int]:
    """Avoidable rematches of a Swiss tournament, and the largest difference of byes in it."""
    rng = np.random.default_rng([n, seed])
    theta_N = rng.normal(0, rng.uniform(0, 3), size=n)
    table, avoidable, difference = Standings.of(f"m{i:02d}" for i in range(n)), 0, 0
    for round in range(1, swiss.rounds_for(n) + 1):
        planned = swiss.pair(table, seed, "client", round)
        again = sum(table.met[frozenset(p)] > 0 for p in planned.pairs)
        avoidable += again if again and avoids(table) else 0
        for a, b in planned.pairs:
            won = rng.random() < expit(theta_N[int(a[1:])] - theta_N[int(b[1:])])
            table.record(a, b, float(won) if rng.random() > TIES else 0.5)
        if planned.bye:
            table.record_bye(planned.bye)
        byes = [table.byes[name] for name in table.points]
        difference = max(difference, max(byes) - min(byes))
    return avoidable, difference


def avoids(table: Standings) -> bool:
    """Whether a round without a rematch exists whose bye goes to one of those with the fewest; by largest matching."""
    names = sorted(table.points)
    fewest = [n for n in names if table.byes[n] == min(table.byes[m] for m in names)]
    for rest in fewest if len(names) % 2 else [None]:
        graph = nx.Graph(p for p in combinations(names, 2) if rest not in p and not table.met[frozenset(p)])
        if 2 * len(nx.max_weight_matching(graph, maxcardinality=True)) == len(names) - len(names) % 2:
            return True
    return False


# --- simulated tournaments ---------------------------------------------------------------------------------------


def strengths(n: int, separation: float | str) -> np.ndarray:
    """theta_N, mean 0, best last."""
    if separation == "table 2":
        rate_N = np.array(TABLE_2[:: 12 // n])[::-1]
        target_N = rate_N - rate_N.mean() + 0.5

        def misfit(theta_N: np.ndarray) -> np.ndarray:
            win_NN = expit(theta_N[:, None] - theta_N)
            return (win_NN.sum(axis=1) - 0.5) / (n - 1) - target_N + theta_N.mean()

        theta_N = root(misfit, logit(target_N)).x
        return theta_N - theta_N.mean()
    return logit(float(separation)) * (np.arange(n) - (n - 1) / 2)


def verdicts(theta_N: np.ndarray, clients: int, rng: np.random.Generator) -> np.ndarray:
    """points_CNN of the first over the second: 1, 0.5 or 0, every pair of every client."""
    n = len(theta_N)
    theta_CN = theta_N + rng.normal(0, CLIENT_SPREAD, size=(clients, n))
    won_CNN = (rng.random((clients, n, n)) < expit(theta_CN[:, :, None] - theta_CN[:, None, :])).astype(float)
    won_CNN[rng.random((clients, n, n)) < TIES] = 0.5
    upper_NN = np.triu(np.ones((n, n), dtype=bool), 1)
    return np.where(upper_NN, won_CNN, 1 - won_CNN.swapaxes(1, 2)) * (1 - np.eye(n))


def play(name: PairingName, points_CNN: np.ndarray, rounds: int, seed: int) -> Iterator[np.ndarray]:
    """wins_C1NN after each round."""
    clients, n, _ = points_CNN.shape
    tables = {f"c{c:03d}": Standings.of(f"m{i:02d}" for i in range(n)) for c in range(clients)}
    wins_C1NN = np.zeros((clients, 1, n, n))
    for round in range(1, rounds + 1):
        for wave in pairing.waves(name, sorted(tables)):
            for client, planned in pairing.next_round(name, tables, wave, seed, round).items():
                c = int(client[1:])
                for a, b in planned.pairs:
                    i, j = int(a[1:]), int(b[1:])
                    tables[client].record(a, b, points_CNN[c, i, j])
                    wins_C1NN[c, 0, i, j] += points_CNN[c, i, j]
                    wins_C1NN[c, 0, j, i] += points_CNN[c, j, i]
                if planned.bye:
                    tables[client].record_bye(planned.bye)
        yield wins_C1NN.copy()


def rank(n: int, separation: float | str, clients: int, simulations: int) -> Iterator[Figure]:
    theta_N, found = strengths(n, separation), {"swiss with round robin": [], "swiss with truth": []}
    found["round robin with truth"] = []
    for seed in range(simulations):
        points_CNN = verdicts(theta_N, clients, np.random.default_rng([1, n, seed]))
        *_, wins_C1NN = play("swiss", points_CNN, swiss.rounds_for(n), seed)
        ours_N, all_N = (ratings.fit(w.sum(axis=0)[None])[0] for w in (wins_C1NN[:, 0], points_CNN))
        found["swiss with round robin"].append(kendalltau(ours_N, all_N).statistic)
        found["swiss with truth"].append(kendalltau(ours_N, theta_N).statistic)
        found["round robin with truth"].append(kendalltau(all_N, theta_N).statistic)
    where = f"rank: {n} contestants, {clients} clients, separation {separation}"
    for what, taus in found.items():
        yield mean(f"{where}: tau of {what}", taus, most=1)
    yield Figure(f"{where}: battles of swiss over round robin's", *[swiss_share(n)] * 3, 1)


def swiss_share(n: int) -> float:
    return pairing.matches_of("swiss", n) / pairing.matches_of("round_robin", n)


class Curve(NamedTuple):
    """After each round R of one design: battles a tournament, mean width, and each contestant's (rating, low, high)."""

    battles_R: list[float]
    width_R: list[float]
    rows_RN: list[list[tuple[float, float, float]]]


def curve(name: PairingName, points_CNN: np.ndarray, rounds: int, seed: int) -> Curve:
    names = [f"m{i:02d}" for i in range(points_CNN.shape[1])]
    made = Curve([], [], [])
    for wins_C1NN in play(name, points_CNN, rounds, seed):
        table = ratings.rate(wins_C1NN, names, columns=["overall"])
        rows = sorted(table.ratings["overall"], key=lambda row: row.contestant)
        made.battles_R.append(float(wins_C1NN.sum()))
        made.width_R.append(float(np.mean([row.high - row.low for row in rows])))
        made.rows_RN.append([(row.rating, row.low, row.high) for row in rows])
    return made


def battles_at(width: float, of: Curve) -> float:
    """Battles at which the curve reaches `width`: by lines between rounds, beyond the ends along the nearest two."""
    x, y = np.log(of.width_R[::-1]), np.log(of.battles_R[::-1])
    k = int(np.clip(np.searchsorted(x, np.log(width)), 1, len(x) - 1))
    slope = (y[k] - y[k - 1]) / (x[k] - x[k - 1])
    return float(np.exp(y[k - 1] + slope * (np.log(width) - x[k - 1])))


def width(n: int, separation: float | str, clients: int, simulations: int) -> Iterator[Figure]:
    theta_N, own = strengths(n, separation), swiss.rounds_for(n)
    made: dict[PairingName, list[Curve]] = {"swiss": [], "adaptive": [], "round_robin": []}
    for seed in range(simulations):
        points_CNN = verdicts(theta_N, clients, np.random.default_rng([2, n, seed]))
        for name, curves in made.items():
            rounds = min(pairing.most_rounds(n), own + (0 if name == "swiss" else 2))
            curves.append(curve(name, points_CNN, rounds, seed))
    where = f"width: {n} contestants, {clients} clients, separation {separation}"
    for name, curves in made.items():
        yield mean(f"{where}: {name}, mean width after {own} rounds", [c.width_R[own - 1] for c in curves])
    target = [c.width_R[-1] for c in made["swiss"]]
    battles = {name: [battles_at(w, c) for w, c in zip(target, of, strict=True)] for name, of in made.items()}
    for one, other in (("adaptive", "swiss"), ("swiss", "round_robin"), ("adaptive", "round_robin")):
        ratios = np.array(battles[one]) / np.array(battles[other])
        yield ratio(f"{where}: battles of {one} over {other}'s at the width of swiss", ratios)
    for name, curves in made.items():
        rows_SN3 = np.array([c.rows_RN[own - 1] for c in curves])
        centre_N = rows_SN3[:, :, 0].mean(axis=0)
        held_S = ((rows_SN3[:, :, 1] <= centre_N) & (centre_N <= rows_SN3[:, :, 2])).mean(axis=1)
        yield mean(f"{where}: {name}, share of intervals that hold the mean rating", held_S, most=1)


def figures(parts: set[str], quick: bool) -> Iterator[Figure]:
    if "rules" in parts:
        yield from rules(seeds=2 if quick else 200)
    for n in (6, 12):
        if f"rank{n}" in parts:
            for clients in (16,) if quick else (16, 100):
                for separation in ("table 2",) if quick else (0.55, 0.6, 0.7, "table 2"):
                    yield from rank(n, separation, clients, simulations=4 if quick else 24)
        if f"width{n}" in parts and not (quick and n == 12):
            for separation in ("table 2",) if quick else (0.7, "table 2"):
                simulations = 4 if quick else 144 // n
                yield from width(n, separation, 16 if quick else 100, simulations)


def main() -> None:
    parser = benchmark_parser(__doc__, quick="less of everything, under a minute")
    parser.add_argument("--part", choices=PARTS, action="append")
    args = parser.parse_args()
    found = []
    for figure in figures(set(args.part or PARTS), args.quick):
        print(f"{figure.name}: {figure.value:.4g} [{figure.low:.4g}, {figure.high:.4g}], n {figure.n}", flush=True)
        found.append(figure._asdict())
    if args.json:
        args.json.write_text(json.dumps(found, indent=2, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

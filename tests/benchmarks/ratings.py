"""Ratings: equal to choix and scipy, faster than choix, intervals that cover, separable data flagged.

    python -m tests.benchmarks.ratings --json ratings.json                   # some minutes of one core
    python -m tests.benchmarks.ratings --part coverage --json coverage.json  # one part: see PARTS
    python -m tests.benchmarks.ratings --quick                               # under a minute, fewer cases

Part `agreement` reads $PSYCHEPASS_SHARED/data/mentalalign (human scores of ten responders) and says so where that is
absent; no row of it is kept. A battle is two responders' scores on one context and attribute; equal scores tie.
choix and openpyxl come with the dev extra. Times are CPU seconds of one process.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import choix
import numpy as np
import pandas as pd
from scipy.optimize import minimize

from psychepass import records
from psychepass.stats import exact_binomial, share_interval
from tests.benchmarks.figures import Figure, benchmark_parser
from tests.benchmarks.simulated_tournaments import Population, population, without_maximum
from tournament.bradley_terry import connected, fit, fit_davidson
from tournament.prediction import calibration
from tournament.rating_intervals import multinomial_weights
from tournament.ratings import rate, rating_scale

ROOT = Path(__file__).resolve().parents[2]
CONTESTANTS = 12
SPREAD = 1.5  # strengths reach from -1.5 to 1.5: ratings from -160 to 360
CLIENT_SD = 0.7
CLIENTS = (8, 16, 100)
SMALL_FIELDS, SMALL_GAP = (2, 3, 4), 3.0  # contestants, and how far neighbours are apart: clients often agree wholly


def alone(name: str, value: float, n: int) -> Figure:
    """A number that has no interval: counted or compared, not estimated."""
    return Figure(name, float(value), float(value), float(value), n)


def strengths(scale: float = 1.0) -> np.ndarray:
    return np.linspace(-SPREAD, SPREAD, CONTESTANTS)[None] * scale


# --- agreement -----------------------------------------------------------------------------------


def human_counts(file: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """attribute -> strict wins_CNN and ties_CNN (symmetric), a context being a client; a missing score is no battle."""
    sheet = pd.read_excel(file)
    responders = [c for c in sheet.columns if "response" in c]
    cells = [[json.loads(cell) if isinstance(cell, str) else {} for cell in sheet[r]] for r in responders]
    found = {}
    for attribute in next(cell for cell in cells[0] if cell):
        scores = [[np.nan if cell.get(attribute) is None else cell[attribute] for cell in row] for row in cells]
        score_CN = np.array(scores, dtype=float).T
        above_CNN = score_CN[:, :, None] > score_CN[:, None]
        equal_CNN = (score_CN[:, :, None] == score_CN[:, None]) & ~np.eye(len(responders), dtype=bool)
        found[attribute] = (above_CNN.astype(float), equal_CNN.astype(float))
    return found


def scipys_maximum(wins_NN: np.ndarray, ties_NN: np.ndarray | None = None) -> np.ndarray:
    """theta_N, mean 0, of Bradley-Terry, or of Davidson's model where ties are given, by scipy's BFGS on the sum
    over ordered pairs; the last parameter is log nu."""
    n = len(wins_NN)
    both_NN = wins_NN + wins_NN.T + (0 if ties_NN is None else ties_NN)

    def loss(x: np.ndarray) -> tuple[float, np.ndarray]:
        win_NN = np.exp((x[:n, None] - x[:n]) / 2)
        nu = 0.0 if ties_NN is None else np.exp(x[n])
        total_NN = win_NN + win_NN.T + nu
        value = (wins_NN * (np.log(total_NN) - np.log(win_NN))).sum()
        gain_NN = (wins_NN - wins_NN.T) / 2 - both_NN * (win_NN - win_NN.T) / (2 * total_NN)
        if ties_NN is None:
            return value, -gain_NN.sum(axis=1)
        value += (ties_NN / 2 * (np.log(total_NN) - x[n])).sum()
        slope = ties_NN.sum() / 2 - (both_NN * nu / total_NN).sum() / 2
        return value, -np.append(gain_NN.sum(axis=1), slope)

    start = np.zeros(n + (ties_NN is not None))
    for _ in range(5):  # restarted, it gets past the rounding that ends its line search
        start = minimize(loss, start, jac=True, method="BFGS", options={"gtol": 1e-7, "maxiter": 5_000}).x
    return start[:n] - start[:n].mean()


def agreement(args: argparse.Namespace) -> list[Figure]:
    file = Path(os.environ.get("PSYCHEPASS_SHARED", ROOT.parent / "shared")) / "data/mentalalign/human_judge.xlsx"
    if not file.is_file():
        print(f"{file} is absent: set PSYCHEPASS_SHARED to the folder with data/; agreement not measured")
        return []
    of = human_counts(file)
    strict = sum(int(wins_CNN.sum()) for wins_CNN, _ in of.values())
    worst = {"choix ilsr_pairwise_dense": 0.0, "scipy": 0.0, "scipy, ties half": 0.0, "scipy, Davidson": 0.0}
    for wins_CNN, ties_CNN in of.values():
        wins_NN, ties_NN = wins_CNN.sum(axis=0), ties_CNN.sum(axis=0)
        half_NN = wins_NN + ties_NN / 2
        chain = choix.ilsr_pairwise_dense(wins_NN, max_iter=1_000, tol=1e-10)
        tied_N = fit_davidson(half_NN[None], np.array([ties_NN.sum() / 2]), prior_ties=0)[0][0]
        found = {
            "choix ilsr_pairwise_dense": fit(wins_NN[None], prior_ties=0)[0] - (chain - chain.mean()),
            "scipy": fit(wins_NN[None], prior_ties=0)[0] - scipys_maximum(wins_NN),
            "scipy, ties half": fit(half_NN[None], prior_ties=0)[0] - scipys_maximum(half_NN),
            "scipy, Davidson": tied_N - scipys_maximum(wins_NN, ties_NN),
        }
        worst = {name: max(worst[name], float(np.abs(gap).max())) for name, gap in found.items()}
    figures = [alone("agreement/strict human battles", strict, strict)]
    figures += [alone(f"agreement/largest difference of theta to {k}", v, len(of)) for k, v in worst.items()]
    half_CNN = sum(wins_CNN + ties_CNN / 2 for wins_CNN, ties_CNN in of.values())
    for row in calibration(np.asarray(half_CNN)):
        name = f"agreement/favourite's share, predicted {row['predicted']:.3f}/observed"
        figures.append(Figure(name, row["observed"], row["low"], row["high"], row["n_clients"]))
    return figures


# --- speed ---------------------------------------------------------------------------------------


def speed(args: argparse.Namespace) -> list[Figure]:
    """12 dimensions x 1,000 resamples of 100 clients, prior off; choix gets the resampled counts for nothing."""
    dimensions, resamples, rounds = 12, 50 if args.quick else 1_000, 1 if args.quick else 3
    drawn = population(100, strengths().repeat(dimensions, axis=0), CLIENT_SD)
    weights_BC = multinomial_weights(100, resamples)

    def counts() -> np.ndarray:
        return np.tensordot(weights_BC, drawn.wins_CKNN, axes=1).reshape(-1, CONTESTANTS, CONTESTANTS)

    wins_BNN = counts()
    whole = connected(wins_BNN)
    if not whole.all():
        raise RuntimeError(f"{(~whole).sum()} resamples are not strongly connected: choix would not end")
    ours, theirs, gap = [], [], 0.0
    for _ in range(rounds):
        begun = time.process_time()
        full_KN = fit(drawn.wins_CKNN.sum(axis=0), prior_ties=0)
        theta_BN = fit(counts(), prior_ties=0, start_BN=np.tile(full_KN, (resamples, 1)))
        ours.append(time.process_time() - begun)
        begun = time.process_time()
        chains = np.array([choix.ilsr_pairwise_dense(wins_NN) for wins_NN in wins_BNN])
        theirs.append(time.process_time() - begun)
        gap = max(gap, float(np.abs(chains - chains.mean(axis=1, keepdims=True) - theta_BN).max()))
    title = f"speed/{dimensions} dimensions x {resamples} resamples"
    ratios = [b / a for a, b in zip(ours, theirs, strict=True)]
    return [
        *(
            Figure(f"{title}/{name}", float(np.median(x)), min(x), max(x), rounds)
            for name, x in (("ours, CPU s", ours), ("choix ilsr_dense, CPU s", theirs), ("time ratio", ratios))
        ),
        alone(f"{title}/largest difference of theta", gap, len(wins_BNN)),
    ]


# --- coverage ------------------------------------------------------------------------------------


def coverage(args: argparse.Namespace) -> list[Figure]:
    """12 contestants, Swiss within each client, both orders; intervals as the stage's own `rate` gives them."""
    tournaments, clients = (40, 300) if args.quick else (1_000, 4_000)
    figures = []
    apart, level = (population(clients, strengths(scale), CLIENT_SD) for scale in (1.0, 0.03))
    fields = {"apart": (apart, False), "nearly level": (level, False), "apart, Davidson": (apart, True)}
    for field, (people, davidson) in fields.items():
        for n in CLIENTS:
            found = covered(people, n, tournaments, davidson)
            figures += [Figure(f"coverage/{field}, {n} clients/{name}", *ends) for name, ends in found.items()]
            print(*map(readable, figures[-len(found) :]), sep="\n", flush=True)
    return figures


def small(args: argparse.Namespace) -> list[Figure]:
    """As `coverage` in fields so small that all clients may agree: what such data leave open is in the intervals."""
    tournaments, clients = (40, 300) if args.quick else (1_000, 4_000)
    figures = []
    for contestants in SMALL_FIELDS:
        people = population(clients, SMALL_GAP * np.arange(float(contestants))[None], CLIENT_SD)
        for n in CLIENTS[:2]:
            found = covered(people, n, tournaments, davidson=False)
            figures += [Figure(f"small/{contestants} contestants, {n} clients/{k}", *ends) for k, ends in found.items()]
            print(*map(readable, figures[-len(found) :]), sep="\n", flush=True)
    return figures


def covered(people: Population, clients: int, tournaments: int, davidson: bool) -> dict[str, tuple]:
    """Shares over contestants, then tournaments, with intervals over tournaments."""
    truth_N = rating_scale(people.large_sample_theta(clients, davidson))
    rank_N = 1 + (truth_N > truth_N[:, None] + 1e-6).sum(axis=1)
    names = [str(i) for i in range(len(truth_N))]
    rng = np.random.default_rng(clients)
    holds_TN, ranks_TN, widths_T, flagged = [], [], [], 0
    for seed in range(tournaments):
        played = people.draw(clients, rng)
        table = rate(played.wins_CKNN, names, ["overall"], seed, played.ties_CK if davidson else None)
        of = {r.contestant: r for r in table.ratings["overall"]}
        holds_TN.append([of[n].low <= t <= of[n].high for n, t in zip(names, truth_N, strict=True)])
        ranks_TN.append([of[n].rank_low <= r <= of[n].rank_high for n, r in zip(names, rank_N, strict=True)])
        widths_T.append(np.mean([r.high - r.low for r in of.values()]))
        flagged += table.graph["overall"] != "ok"
    worst = exact_binomial(int(np.min(np.sum(holds_TN, axis=0))), tournaments)
    found = {"ratings covered": share_interval(np.mean(holds_TN, axis=1)), "worst contestant": worst}
    found["ranks covered"] = share_interval(np.mean(ranks_TN, axis=1))
    found["without a finite maximum"] = exact_binomial(flagged, tournaments)
    numbers = {name: (i.value, i.low, i.high, tournaments) for name, i in found.items()}
    ends = np.quantile(widths_T, [0.5, 0.1, 0.9]).tolist()
    return numbers | {"width, median with 10 % and 90 % quantiles": (*ends, tournaments)}


# --- separable -----------------------------------------------------------------------------------


def separable(args: argparse.Namespace) -> list[Figure]:
    """Half of the cases separable, half disconnected, and as many that are neither."""
    cases = 100 if args.quick else 1_000
    rng = np.random.default_rng(0)
    flagged = {"without a finite maximum": 0, "with one": 0}
    for case, name in itertools.product(range(cases), flagged):
        kind = "ok" if name == "with one" else ("separable", "disconnected")[case % 2]
        wins_C1NN = without_maximum(rng, kind)
        table = rate(wins_C1NN, [str(i) for i in range(wins_C1NN.shape[-1])], ["overall"])
        if table.graph["overall"] not in ("ok", kind) or not np.isfinite(table.ratings["overall"][0].high):
            raise RuntimeError(f"case {case}, {kind}: called {table.graph['overall']}")
        flagged[name] += table.graph["overall"] != "ok"
    ends = {name: exact_binomial(k, cases) for name, k in flagged.items()}
    return [Figure(f"separable/flagged, {name}", e.value, e.low, e.high, cases) for name, e in ends.items()]


PARTS: dict[str, Callable[[argparse.Namespace], list[Figure]]] = {
    "agreement": agreement,
    "speed": speed,
    "separable": separable,
    "coverage": coverage,
    "small": small,
}


def readable(f: Figure) -> str:
    ends = "" if f.low == f.value == f.high else f"[{f.low:.4g}, {f.high:.4g}] "
    return f"{f.name:<70} {f.value:10.4g} {ends}n = {f.n}"


def main(argv: list[str] | None = None) -> int:
    parser = benchmark_parser(__doc__, quick="fewer cases, under a minute")
    parser.add_argument("--part", choices=PARTS, help="this one alone")
    args = parser.parse_args(argv)
    figures = []
    for name, part in PARTS.items():
        if args.part in (None, name):
            found = part(args)
            if name not in ("coverage", "small"):  # these print as they go
                print(*map(readable, found), sep="\n", flush=True)
            figures += found
    if args.json:
        records.write_json(args.json, [f._asdict() for f in figures])
    return 0


if __name__ == "__main__":
    sys.exit(main())

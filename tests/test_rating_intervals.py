"""Ranks, groups that cannot be told apart, and predicted against observed wins."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tests.test_ratings import simulated
from tournament import rating_intervals
from tournament.bradley_terry import fit, left_open
from tournament.prediction import calibration
from tournament.ratings import rate, rating_scale


def test_groups_are_the_largest_sets_not_told_apart():
    apart_NN = np.zeros((4, 4), dtype=bool)
    for i, j in ((0, 3), (1, 2), (1, 3)):  # ranking 1 > 0 > 2 > 3
        apart_NN[i, j] = apart_NN[j, i] = True
    assert rating_intervals.groups([1, 0, 2, 3], apart_NN) == [[1, 0], [0, 2], [2, 3]]
    assert rating_intervals.groups([1, 0, 2, 3], np.ones((4, 4), dtype=bool)) == [[1], [0], [2], [3]]


def test_a_difference_that_every_client_shows_tells_apart_and_ties_do_not():
    wins_C1NN = np.zeros((12, 1, 3, 3))
    wins_C1NN[:, 0, 0, 1:] = 2
    wins_C1NN[:, 0, [1, 2], [2, 1]] = 0.5
    table = rate(wins_C1NN, ["best", "b", "c"], columns=["overall"])
    assert table.groups["overall"] == [["best"], ["b", "c"]]
    assert [(r.rank_low, r.rank_high) for r in table.ratings["overall"]] == [(1, 1), (2, 3), (2, 3)]


def test_few_clients_that_agree_do_not_tell_apart():
    """Three clients, each for the first: as likely as one in four where both are equal."""
    wins_C1NN = np.zeros((3, 1, 2, 2))
    wins_C1NN[:, 0, 0, 1] = 2
    table = rate(wins_C1NN, ["x", "y"], columns=["overall"])
    assert table.graph["overall"] == "separable" and table.groups["overall"] == [["x", "y"]]
    first, second = table.ratings["overall"]
    assert first.low < second.rating < first.rating and (first.rank_low, first.rank_high) == (1, 2)


@pytest.mark.parametrize(("clients", "contestants", "gap"), [(8, 2, 1.5), (3, 2, 1.5), (8, 4, 1.5), (40, 2, 4.0)])
def test_intervals_cover_where_all_clients_may_agree(clients, contestants, gap):
    """Clients alone would not: where none of them dissents, leaving one out changes nothing."""
    strengths, repeats = [gap * i for i in range(contestants)], 120
    truth_N = rating_scale(fit(simulated(20_000, strengths, seed=99).mean(axis=0) * clients)[0])
    held, separable = [], 0
    for seed in range(repeats):
        table = rate(simulated(clients, strengths, seed), list("abcd")[:contestants], columns=["overall"])
        rows = {r.contestant: r for r in table.ratings["overall"]}
        held += [rows[n].low <= truth <= rows[n].high for n, truth in zip("abcd", truth_N, strict=False)]
        separable += table.graph["overall"] == "separable"
    assert np.mean(held) >= 0.93 and separable > 0.04 * repeats


def test_what_data_leave_open_by_hand():
    """x won all of 8 against y: (v + s, -v; -v, v + s), v = 8 P(1 - P), s the prior's; groups move as a whole."""
    theta_N, met_NN = np.array([1.4, -1.4]), np.array([[0, 8], [8, 0]])
    wins_NN = np.array([[0.0, 8.0], [0.0, 0.0]])
    v, s = 8 * math.exp(-2.8) / (1 + math.exp(-2.8)) ** 2, math.exp(-1.4) / (1 + math.exp(-1.4)) ** 2
    open_NN = left_open(theta_N, wins_NN, met_NN)
    assert open_NN[0, 0] + open_NN[1, 1] - 2 * open_NN[0, 1] == pytest.approx(2 / (2 * v + s))
    assert not left_open(theta_N, wins_NN + wins_NN.T, met_NN).any()
    pairs_NN = np.array([[0, 1, 2, 2], [1, 0, 2, 2], [0, 0, 0, 1], [0, 0, 1, 0.0]])
    of_two = left_open(np.array([2.0, 2.0, -2.0, -2.0]), pairs_NN, pairs_NN + pairs_NN.T)
    assert of_two[0] == pytest.approx(of_two[1]) and of_two[2] == pytest.approx(of_two[3])
    assert of_two[0, 0] == pytest.approx(-of_two[0, 2]) and of_two[0, 0] > 0.1


@pytest.mark.parametrize("clients", [8, 40])
def test_ranks_and_groups_of_equals_are_wide(clients):
    """Ten equals: each is ranked 1 to 10 in about 95 % of tournaments, and all are one group in as many; with each
    difference at 95 % by itself, as if it were the only one, it is far fewer."""
    whole, one_group, repeats = 0, 0, 60
    for seed in range(repeats):
        table = rate(simulated(clients, [0] * 10, seed, spread=0.5), list("abcdefghij"), columns=["overall"])
        whole += sum((r.rank_low, r.rank_high) == (1, 10) for r in table.ratings["overall"])
        one_group += len(table.groups["overall"]) == 1
    assert whole / repeats / 10 >= 0.88 and one_group / repeats >= 0.88


def test_prediction_by_hand():
    """Two clients, each foretold by the other alone: three wins to one, with the prior, against five to five."""
    wins_CNN = np.array([[[0.0, 3], [1, 0]], [[0, 5], [5, 0]]])
    theta = fit(wins_CNN[:1])[0]
    likely = 1 / (1 + math.exp(theta[1] - theta[0]))
    rows = calibration(wins_CNN)
    assert [(r["from"], r["n"], r["n_clients"]) for r in rows] == [(0.5, 4, 1), (0.7, 10, 1)]
    assert rows[0]["predicted"] == 0.5 and rows[0]["observed"] == 0.75
    assert rows[1]["predicted"] == pytest.approx(likely, abs=1e-6) and rows[1]["observed"] == 0.5
    with pytest.raises(ValueError, match="two clients or more, got 1"):
        calibration(wins_CNN[:1])


@pytest.mark.parametrize("davidson", [False, True])
def test_true_ratings_are_calibrated_and_turned_ones_are_not(davidson):
    wins_CNN = simulated(400, [-1.5, -0.5, 0, 0.8, 1.6], seed=4, spread=0)[:, 0]
    wins_CNN[:, 0, 1] = wins_CNN[:, 1, 0] = 0.5  # always a tie: not what either model says, but its pair is near
    rows = calibration(wins_CNN, np.ones(400) if davidson else None)
    assert sum(r["n"] for r in rows) == 400 * 10
    assert all(r["low"] - 0.06 <= r["predicted"] <= r["high"] + 0.06 for r in rows if r["n"] > 200)
    turned = wins_CNN.copy()
    turned[::10] = wins_CNN[::10].swapaxes(1, 2)  # the clients of one fold judge the other way round
    assert calibration(turned)[-1]["observed"] < rows[-1]["observed"] - 0.05

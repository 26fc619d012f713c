"""Bradley-Terry ratings on known answers, at separable data, and the coverage of their intervals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.sparse.csgraph import connected_components

from psychepass.errors import UserError
from psychepass.schema import Battle, Dimension, JudgeIdentity, Verdict
from tournament import ratings
from tournament.bradley_terry import connected, expected_score, fit, fit_davidson, win_graph
from tournament.ratings import XI, rate

# the example of Wikipedia's article on the Bradley-Terry model: row beat column so many times
WIKIPEDIA = np.array([[0, 2, 0, 1], [3, 0, 5, 0], [0, 3, 0, 1], [4, 0, 3, 0]], dtype=float)


def test_wikipedia_example_without_prior():
    strength = np.exp(fit(WIKIPEDIA[None], prior_ties=0)[0])
    assert strength / strength.sum() == pytest.approx([0.139, 0.226, 0.143, 0.492], abs=5e-4)
    # the same with the geometric mean as unit, which is mean 0 on our scale
    assert strength == pytest.approx([0.640, 1.043, 0.660, 2.270], abs=5e-4)


def test_two_contestants_by_hand():
    # three wins to one: odds of 3, so the ratings are 100 ± 200 log10(3) = 100 ± 95.424
    theta = fit(np.array([[[0.0, 3], [1, 0]]]), prior_ties=0)[0]
    assert ratings.rating_scale(theta) == pytest.approx([195.424, 4.576], abs=1e-3)
    assert pytest.approx(200 * math.log10(3)) == XI * math.log(3) / 2


def test_prior_by_hand():
    # one win, none lost: with theta and -theta the gradient is s(2 theta) - 1 + 1/2 (2 s(theta) - 1) a side;
    # theta = log x solves 1 / (1 + x²) = (x - 1) / (2 (x + 1)), i.e. x³ - x² - x - 3 = 0, x = 2.130395
    x = np.exp(fit(np.array([[[0.0, 1], [0, 0]]]))[0, 0])
    assert x**3 - x**2 - x - 3 == pytest.approx(0, abs=1e-6)


def test_a_tie_is_half_a_win_for_each():
    tied = fit(np.array([[[0.0, 2.5], [2.5, 0]]]), prior_ties=0)
    assert tied == pytest.approx(np.zeros((1, 2)))


def test_batches_are_fits_one_by_one():
    wins_BNN = np.random.default_rng(0).poisson(2, size=(20, 5, 5)).astype(float)
    wins_BNN[:, range(5), range(5)] = 0
    wins_BNN[3, 0], wins_BNN[3, :, 0] = 50, 0  # far from the start: the steps must be cut
    together = fit(wins_BNN)
    assert together == pytest.approx(np.stack([fit(w[None])[0] for w in wins_BNN]), abs=1e-7)


def test_the_fit_is_the_maximum():
    wins_NN = np.random.default_rng(1).poisson(3, size=(6, 6)).astype(float)
    np.fill_diagonal(wins_NN, 0)
    theta_N = fit(wins_NN[None], prior_ties=0)[0]
    win_NN = 1 / (1 + np.exp(theta_N[None, :] - theta_N[:, None]))
    assert wins_NN.sum(axis=1) == pytest.approx(((wins_NN + wins_NN.T) * win_NN).sum(axis=1))  # wins as expected
    assert theta_N.mean() == pytest.approx(0)


@pytest.mark.parametrize(
    ("wins", "graph"),
    [
        (WIKIPEDIA, "ok"),
        ([[0, 1, 0], [0, 0, 1], [1, 0, 0]], "ok"),
        ([[0, 1, 1], [0, 0, 1], [0, 1, 0]], "separable"),
        ([[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]], "disconnected"),
    ],
)
def test_win_graph(wins, graph):
    assert win_graph(np.array(wins, dtype=float)) == graph


def test_separable_data_needs_the_prior():
    separable = np.array([[[0.0, 30, 30], [0, 0, 5], [0, 5, 0]]])
    with pytest.raises(ValueError, match="not strongly connected"):
        fit(separable, prior_ties=0)
    theta = fit(separable)[0]
    assert np.isfinite(theta).all() and theta[0] > theta[1] == pytest.approx(theta[2])


def battle(client: str, a: str, b: str, overall: str, **by_dimension: str) -> Battle:
    verdicts = {d: Verdict(winner=by_dimension.get(d.value, overall)) for d in Dimension}  # type: ignore[arg-type]
    return Battle(
        profile_id=client,
        split="train",
        round=1,
        session_a=f"{client}-{a}",
        session_b=f"{client}-{b}",
        contestant_a=a,
        contestant_b=b,
        judge=JudgeIdentity(name="fake", model="fake", rubric_version="1"),
        verdicts=verdicts,
        overall=Verdict(winner=overall),  # type: ignore[arg-type]
    )


def test_wins_are_counted_by_client_and_dimension():
    played = [battle("c2", "x", "y", "A", crisis="B"), battle("c1", "y", "x", "tie", memory="A")]
    clients, wins_CKNN = ratings.wins_by_client(played, ["x", "y"])
    column = {name: k for k, name in enumerate(ratings.COLUMNS)}
    assert clients == ["c1", "c2"]
    assert wins_CKNN[1, column["overall"]].tolist() == [[0, 1], [0, 0]]
    assert wins_CKNN[1, column["crisis"]].tolist() == [[0, 0], [1, 0]]
    assert wins_CKNN[0, column["overall"]].tolist() == [[0, 0.5], [0.5, 0]]
    assert wins_CKNN[0, column["memory"]].tolist() == [[0, 0], [1, 0]]


def test_the_order_of_presentation_does_not_count():
    played = [battle("c1", "x", "y", "A", crisis="B"), battle("c2", "y", "x", "tie")]
    straight = ratings.wins_by_client(played, ["x", "y"])[1]
    assert np.array_equal(straight, ratings.wins_by_client([b.swapped() for b in played], ["x", "y"])[1])


def simulated(clients: int, strengths: list[float], seed: int, spread: float = 0.7) -> np.ndarray:
    """wins_C1NN of round-robins whose strengths shift with the client: verdicts of one client are dependent."""
    rng = np.random.default_rng(seed)
    theta_CN = np.array(strengths) + rng.normal(0, spread, size=(clients, len(strengths)))
    wins_C1NN = np.zeros((clients, 1, len(strengths), len(strengths)))
    for i in range(len(strengths)):
        for j in range(i):
            won_C = rng.random(clients) < 1 / (1 + np.exp(theta_CN[:, j] - theta_CN[:, i]))
            wins_C1NN[:, 0, i, j], wins_C1NN[:, 0, j, i] = won_C, ~won_C
    return wins_C1NN


@pytest.mark.parametrize(("clients", "method"), [(16, "jackknife-t"), (40, "dirichlet-bootstrap")])
def test_a_table_over_clients(clients, method):
    names = ["low", "middle", "high", "top"]
    table = rate(simulated(clients, [-2, 0, 1, 3], seed=0), names, columns=["overall"])
    rows = table.ratings["overall"]
    assert table.method == method and table.graph["overall"] == "ok"
    assert [r.contestant for r in rows] == ["top", "high", "middle", "low"]
    assert sum(r.rating for r in rows) / 4 == pytest.approx(100, abs=0.001)
    for rank, row in enumerate(rows, start=1):
        assert row.low < row.rating < row.high and row.rank_low <= rank <= row.rank_high
        assert row.battles == 3 * clients
    assert rows[0].rank_high < rows[-1].rank_low
    assert rate(simulated(clients, [-2, 0, 1, 3], seed=0), names, columns=["overall"]) == table


def test_a_separable_table_is_flagged_and_finite():
    wins_C1NN = simulated(8, [0, 0, 0], seed=2)
    wins_C1NN[:, 0, 0, 1:], wins_C1NN[:, 0, 1:, 0] = 1, 0
    table = rate(wins_C1NN, ["best", "b", "c"], columns=["overall"])
    assert table.graph["overall"] == "separable" and table.resamples_flagged["overall"] == 1
    assert table.ratings["overall"][0].contestant == "best" and math.isfinite(table.ratings["overall"][0].high)


def test_resamples_are_checked_on_their_own():
    """One client alone links the two groups: without it the graph falls apart."""
    wins_C1NN = np.zeros((4, 1, 4, 4))
    wins_C1NN[:, 0, [0, 1, 2, 3], [1, 0, 3, 2]] = 0.5
    wins_C1NN[0, 0, [0, 2], [2, 0]] = 0.5
    table = rate(wins_C1NN, list("abcd"), columns=["overall"])
    assert table.graph["overall"] == "ok" and table.resamples_flagged["overall"] == 0.25


def test_contestants_without_a_battle_and_lone_clients_are_refused():
    with pytest.raises(ValueError, match="no judged battle of c"):
        rate(np.pad(simulated(3, [0, 1], seed=0), ((0, 0), (0, 0), (0, 1), (0, 1))), list("abc"), columns=["overall"])
    with pytest.raises(ValueError, match="two clients or more, got 1"):
        rate(simulated(1, [0, 1], seed=0), list("ab"), columns=["overall"])


@pytest.mark.parametrize("clients", [8, 16])
def test_jackknife_covers_the_estimators_own_large_sample_value(clients):
    """Truth: the fit, with the same prior, of the mean counts under the same pairing."""
    strengths, repeats = [-1.0, -0.3, 0.0, 0.4, 0.9], 200
    mean_wins_1NN = simulated(40_000, strengths, seed=99).mean(axis=0) * clients
    truth_N = ratings.rating_scale(fit(mean_wins_1NN))[0]
    covered = []
    for seed in range(repeats):
        table = rate(simulated(clients, strengths, seed), list("abcde"), columns=["overall"])
        rows = {r.contestant: r for r in table.ratings["overall"]}
        covered += [rows[name].low <= truth <= rows[name].high for name, truth in zip("abcde", truth_N, strict=True)]
    assert np.mean(covered) >= 0.93


def test_davidson_by_hand():
    """Two contestants, 6 wins to 2 and 4 ties: the maximum fits all three shares, so e^d = 3 and nu = 4/sqrt(12)."""
    theta, nu = fit_davidson(np.array([[[0.0, 8], [4, 0]]]), np.array([4.0]), prior_ties=0)
    assert np.exp(theta[0, 0] - theta[0, 1]) == pytest.approx(3)
    assert nu[0] == pytest.approx(4 / math.sqrt(12))
    share = expected_score(theta[0, 0] - theta[0, 1], nu[0])
    assert (
        share == pytest.approx(8 / 12) and expected_score(np.array(-1e3)) == 0 and expected_score(np.array(0.0)) == 0.5
    )


def trinomial_loss(x: np.ndarray, strict_NN: np.ndarray, ties_NN: np.ndarray, prior: float) -> float:
    """Davidson's posterior written out verdict by verdict; x holds theta, then log nu."""
    *theta, log_nu = x
    strength, nu, loss = np.exp(theta), math.exp(log_nu), 0.0
    for i, j in itertools.permutations(range(len(theta)), 2):
        total = strength[i] + strength[j] + nu * math.sqrt(strength[i] * strength[j])
        loss -= strict_NN[i, j] * math.log(strength[i] / total)
        loss -= ties_NN[i, j] / 2 * math.log(nu * math.sqrt(strength[i] * strength[j]) / total)
    virtual = [1 / (1 + 1 / s) for s in strength] + [nu / (2 + nu)]
    return loss - prior / 2 * sum(math.log(p) + math.log(1 - p) for p in virtual)


@pytest.mark.parametrize("prior", [0.0, 1.0])
def test_davidson_is_scipys_maximum(prior):
    rng = np.random.default_rng(5)
    strict_NN, ties_NN = rng.poisson(4, size=(4, 4)).astype(float), rng.poisson(3, size=(4, 4)).astype(float)
    ties_NN = np.triu(ties_NN, 1) + np.triu(ties_NN, 1).T
    np.fill_diagonal(strict_NN, 0)
    theta, nu = fit_davidson((strict_NN + ties_NN / 2)[None], np.array([ties_NN.sum() / 2]), prior_ties=prior)
    found = minimize(trinomial_loss, np.zeros(5), (strict_NN, ties_NN, prior), "BFGS", options={"gtol": 1e-6}).x
    assert theta[0] == pytest.approx(found[:4] - found[:4].mean(), abs=1e-5)
    assert nu[0] == pytest.approx(math.exp(found[4]), abs=1e-5)


def test_davidson_without_prior_needs_ties_and_verdicts():
    wins = np.array([[[0.0, 2], [2, 0]]])
    for ties in (0.0, 4.0):
        with pytest.raises(ValueError, match="no finite maximum of Davidson's nu"):
            fit_davidson(wins, np.array([ties]), prior_ties=0)
        assert np.isfinite(fit_davidson(wins, np.array([ties]))[1]).all()


def test_no_tie_makes_davidson_bradley_terry():
    theta, nu = fit_davidson(1000 * WIKIPEDIA[None], np.zeros(1))
    assert nu[0] < 0.01 and theta[0] == pytest.approx(fit(1000 * WIKIPEDIA[None])[0], abs=0.01)


def test_a_start_changes_nothing_but_the_way():
    wins_BNN = np.random.default_rng(3).poisson(3, size=(9, 4, 4)).astype(float)
    wins_BNN[:, range(4), range(4)] = 0
    start = np.random.default_rng(4).normal(0, 3, size=(9, 4))
    assert fit(wins_BNN, start_BN=start) == pytest.approx(fit(wins_BNN), abs=1e-7)


def test_connected_is_strong_connectivity():
    rng = np.random.default_rng(0)
    wins_BNN = (rng.random((300, 7, 7)) < 0.28) * rng.random((300, 7, 7))
    expected = [connected_components(w > 0, connection="strong")[0] == 1 for w in wins_BNN]
    assert connected(wins_BNN).tolist() == expected and 20 < sum(expected) < 280


# --- what may not be rated together --------------------------------------------------------------


@pytest.mark.parametrize("field", ["name", "model", "rubric_version", "prompt_hash"])
def test_battles_of_two_judges_are_not_rated_together(field):
    one, two = battle("c1", "x", "y", "A"), battle("c2", "x", "y", "B")
    other = two.model_copy(update={"judge": two.judge.model_copy(update={field: "other"})})
    with pytest.raises(
        UserError, match=rf"judges of battle \w+ and of battle \w+ differ: {field} '\w*' and 'other'; one"
    ):
        ratings.wins_by_client([one, other], ["x", "y"])


def test_ties_are_counted_by_client():
    played = [battle("c2", "x", "y", "A", crisis="tie"), battle("c1", "y", "x", "tie", memory="A")]
    ties_CK = ratings.ties_by_client(played)
    column = {name: k for k, name in enumerate(ratings.COLUMNS)}
    assert ties_CK[:, column["overall"]].tolist() == [1, 0] and ties_CK[:, column["crisis"]].tolist() == [1, 1]
    assert ties_CK.sum() == 12 + 1


def test_a_table_with_davidsons_ties():
    wins_C1NN, ties_C1 = simulated(16, [-1, 0, 1], seed=1), np.full((16, 1), 1.0)
    wins_C1NN[:, 0, 0, 1] = wins_C1NN[:, 0, 1, 0] = 0.5
    table = rate(wins_C1NN, list("abc"), columns=["overall"], ties_CK=ties_C1)
    assert table.nu is not None and table.nu["overall"] > 0.3
    assert table != rate(wins_C1NN, list("abc"), columns=["overall"]) and table.graph["overall"] == "ok"


def test_one_contestant_and_one_name_twice_are_refused():
    with pytest.raises(ValueError, match="two contestants or more, got 1"):
        rate(np.zeros((3, 1, 1, 1)), ["a"], columns=["overall"])
    with pytest.raises(ValueError, match="two contestants have one name among a, a"):
        rate(simulated(3, [0, 1], seed=0), ["a", "a"], columns=["overall"])

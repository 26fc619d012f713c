"""Swiss, round robin and adaptive pairing as properties, against oracles that share no code with them."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from itertools import combinations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from psychepass.errors import UserError
from tests.benchmarks import pairing as benchmark
from tests.test_tournament import FakeJudge, field
from tournament import pairing, ratings, run, swiss
from tournament.journal import Journal
from tournament.play import in_turn, play
from tournament.swiss import Round, Standings

NAMES = [f"m{i:02d}" for i in range(33)]
POINTS = (0.0, 0.25, 0.5, 0.75, 1.0)


def check_whole(table: Standings, planned: Round) -> None:
    """Everybody once: in a pair, or as the one bye of an odd field."""
    names = [name for p in planned.pairs for name in p] + ([planned.bye] if planned.bye else [])
    assert sorted(names) == sorted(table.points)
    assert (planned.bye is not None) == (len(table.points) % 2 == 1)


def record(table: Standings, planned: Round, rng: random.Random) -> None:
    for a, b in planned.pairs:
        table.record(a, b, rng.choice(POINTS))
    if planned.bye:
        table.record_bye(planned.bye)


def without_rematch(table: Standings) -> bool:
    """Whether a round exists in which nobody meets again and a bye goes to one of those with the fewest (networkx's
    largest matching, of the new pairs alone)."""
    names = sorted(table.points)
    fewest = min(table.byes[n] for n in names)
    resting: list[list[str]] = [[n] for n in names if table.byes[n] == fewest] if len(names) % 2 else [[]]
    for rest in resting:
        graph = nx.Graph()
        graph.add_nodes_from(n for n in names if n not in rest)
        graph.add_edges_from(p for p in combinations(graph.nodes, 2) if not table.met[frozenset(p)])
        if 2 * len(nx.max_weight_matching(graph, maxcardinality=True)) == len(graph):
            return True
    return False


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 33), seed=st.integers(0, 10**6), client=st.text(max_size=5))
def test_swiss_has_no_avoidable_rematch_and_even_byes(n, seed, client):
    table, rng = Standings.of(NAMES[:n]), random.Random(seed)
    for number in range(1, swiss.rounds_for(n) + 1):
        planned = swiss.pair(table, seed, client, number)
        check_whole(table, planned)
        record(table, planned, rng)
        byes = [table.byes[name] for name in table.points]
        assert max(byes) - min(byes) <= 1
    assert max(table.met.values()) == 1  # ceil(log2 N) rounds never need one
    assert len(table.results) == swiss.rounds_for(n) * (n // 2)  # a bye adds no battle


@settings(max_examples=25, deadline=None)
@given(n=st.integers(3, 10), seed=st.integers(0, 10**6))
def test_swiss_meets_again_only_where_it_must(n, seed):
    """Beyond its own rounds, until everybody could have met everybody and further."""
    table, rng = Standings.of(NAMES[:n]), random.Random(seed)
    for number in range(1, n + 3):
        planned = swiss.pair(table, seed, "client", number)
        check_whole(table, planned)
        again = [p for p in planned.pairs if table.met[frozenset(p)]]
        assert not (again and without_rematch(table)), f"round {number}: {again}"
        record(table, planned, rng)
        byes = [table.byes[name] for name in table.points]
        assert max(byes) - min(byes) <= 1


def test_the_oracle_sees_what_can_be_avoided():
    assert without_rematch(Standings(dict.fromkeys("abcd", 0.0), Counter([frozenset("ab"), frozenset("ac")])))
    stuck = Standings(dict.fromkeys("abcd", 0.0), Counter(frozenset(p) for p in ("ab", "ac", "ad")))
    assert not without_rematch(stuck)


def all_rounds(names: list[str]) -> Iterator[tuple[list[frozenset[str]], str | None]]:
    """Every way to pair `names`."""
    if len(names) % 2:
        for rest in names:
            yield from ((pairs, rest) for pairs, _ in all_rounds([n for n in names if n != rest]))
    elif not names:
        yield [], None
    else:
        for other in names[1:]:
            for pairs, _ in all_rounds([n for n in names[1:] if n != other]):
                yield [frozenset((names[0], other)), *pairs], None


def cost(table: Standings, pairs: list[frozenset[str]], bye: str | None) -> tuple[float, ...]:
    """The aims of swiss.py in their order: byes had, rematches, points of the bye, squared differences."""
    differences = [np.ptp([table.points[n] for n in p]) ** 2 for p in pairs]
    had = (table.byes[bye], table.points[bye]) if bye else (0, 0.0)
    return had[0], sum(table.met[p] for p in pairs), had[1], float(sum(differences))


@settings(max_examples=40, deadline=None)
@given(data=st.data(), n=st.integers(2, 7))
def test_swiss_is_the_best_of_all_rounds(data, n):
    """On any standings, reached or not: what the matching finds is what trying every round finds."""
    names = NAMES[:n]
    quarters = st.integers(0, 12).map(lambda q: q / 4)
    table = Standings(
        {name: data.draw(quarters) for name in names},
        Counter({frozenset(p): data.draw(st.integers(0, 2)) for p in combinations(names, 2)}),
        Counter({name: data.draw(st.integers(0, 2)) for name in names}),
    )
    planned = swiss.pair(table, data.draw(st.integers(0, 99)), "client", 1)
    found = cost(table, [frozenset(p) for p in planned.pairs], planned.bye)
    costs = [(cost(table, *every), every[1]) for every in all_rounds(names)]
    assert found[:3] == min(c[:3] for c, _ in costs)
    # among equals at the bottom lots decide on the bye, and the differences are the least with that bye
    assert found == min(c for c, bye in costs if bye == planned.bye)


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 7, 12, 33])
def test_round_robin_meets_everybody_once(n):
    table, met = Standings.of(NAMES[:n]), Counter()
    for number in range(1, pairing.most_rounds(n) + 1):
        planned = pairing.next_round("round_robin", {"c": table}, ["c"], 3, number)["c"]
        check_whole(table, planned)
        met.update(frozenset(p) for p in planned.pairs)
        table.byes.update([planned.bye] if planned.bye else [])
    assert met == Counter(frozenset(p) for p in combinations(NAMES[:n], 2))
    assert set(table.byes.values()) <= {1} and len(table.byes) == (n if n % 2 else 0)


def test_round_robin_starts_anew_with_each_client():
    tables = {f"c{i}": Standings.of(NAMES[:6]) for i in range(20)}
    first = pairing.next_round("round_robin", tables, list(tables), 0, 1)
    assert len({frozenset(map(frozenset, planned.pairs)) for planned in first.values()}) > 5


@settings(max_examples=15, deadline=None)
@given(n=st.integers(2, 9), clients=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_adaptive_plans_each_at_most_once_and_no_rematch(n, clients, seed):
    tables, rng = {f"c{i}": Standings.of(NAMES[:n]) for i in range(clients)}, random.Random(seed)
    for number in range(1, pairing.most_rounds(n) + 1):
        planned = pairing.next_round("adaptive", tables, list(tables), seed, number)
        assert planned == pairing.next_round("adaptive", tables, list(tables), seed, number)
        for client, of_client in planned.items():
            names = [name for p in of_client.pairs for name in p]
            assert len(set(names)) == len(names) <= n
            assert not any(tables[client].met[frozenset(p)] for p in of_client.pairs)
            record(tables[client], of_client, rng)


def spd(rng: np.random.Generator, n: int) -> np.ndarray:
    root_NN = rng.normal(size=(n, n))
    return root_NN @ root_NN.T + np.eye(n)


def laplacian(edges: list[tuple[int, int, float]], n: int) -> np.ndarray:
    e_EN = np.array([np.eye(n)[i] - np.eye(n)[j] for i, j, _ in edges])
    return (e_EN * np.array([w for *_, w in edges])[:, None]).T @ e_EN


def test_the_gain_is_the_expected_drop_of_the_variances():
    """The closed form against what the client tells before and after, inverted; the weight against a large sample."""
    rng = np.random.default_rng(0)
    others_NN, own_NN = spd(rng, 4), laplacian([(0, 1, 0.2), (2, 3, 0.25)], 4)
    strength_N = rng.normal(size=4)
    gain_NN, weight_NN = pairing.gains(strength_N, others_NN, own_NN)
    more_NN = own_NN + laplacian([(0, 2, weight_NN[0, 2])], 4)
    before_NN, after_NN = (np.linalg.inv(others_NN + pairing.told(own)) for own in (own_NN, more_NN))
    assert gain_NN[0, 2] == pytest.approx(np.trace(before_NN) - np.trace(after_NN))
    assert gain_NN == pytest.approx(gain_NN.T)
    # d = theta_0 + u_0 - theta_2 - u_2: u given theta is Normal(-(own + 1/s²)^-1 own theta, (own + 1/s²)^-1)
    slack_NN = np.linalg.inv(own_NN + np.eye(4) / pairing.CLIENT_SPREAD**2)
    theta_SN = rng.multivariate_normal(np.zeros(4), before_NN, size=200_000)
    u_SN = rng.multivariate_normal(np.zeros(4), slack_NN, size=200_000) - theta_SN @ (slack_NN @ own_NN).T
    d_S = (strength_N + theta_SN + u_SN) @ np.array([1.0, 0, -1, 0])
    win_S = 1 / (1 + np.exp(-d_S))
    assert weight_NN[0, 2] == pytest.approx(np.mean(win_S * (1 - win_S)), abs=2e-3)


def test_a_client_tells_less_than_its_verdicts_would_alone():
    own_NN = laplacian([(0, 1, 0.25), (1, 2, 0.25)], 3)
    told_NN = pairing.told(own_NN)
    assert np.linalg.eigvalsh(own_NN - told_NN).min() > -1e-12  # no direction gains by the client's effects
    many_NN = pairing.told(1e6 * own_NN)  # and however many verdicts, one client is one draw of its effects
    e_N = np.array([1.0, -1, 0])
    assert e_N @ np.linalg.pinv(many_NN) @ e_N == pytest.approx(2 * pairing.CLIENT_SPREAD**2, rel=1e-3)


def test_the_posterior_is_the_mode():
    tables = {"c": Standings.of("abc"), "d": Standings.of("abc")}
    for a, b, points in [("a", "b", 1.0), ("a", "b", 0.0), ("b", "c", 1.0), ("c", "b", 0.5), ("a", "c", 1.0)]:
        tables["c"].record(a, b, points)
    theta_N, effect_CN, own_CNN = pairing.posterior(list("abc"), list(tables.values()))
    wins_NN = np.array([[0, 1, 1], [1, 0, 1.5], [0, 0.5, 0]])
    assert theta_N == pytest.approx(ratings.fit(wins_NN[None])[0])
    assert np.all(effect_CN[1] == 0) and np.all(own_CNN[1] == 0)  # nothing was judged with this client

    def loss(u_N: np.ndarray) -> float:
        strength_N = theta_N + u_N
        surprise = np.logaddexp(0, -(strength_N[:, None] - strength_N))
        return float((wins_NN * surprise).sum() + (u_N**2).sum() / (2 * pairing.CLIENT_SPREAD**2))

    step = 1e-4
    for i, j in [(0, 0), (0, 1), (1, 2)]:
        e_i, e_j = np.eye(3)[i] * step, np.eye(3)[j] * step
        assert loss(effect_CN[0] + e_i) > loss(effect_CN[0]) < loss(effect_CN[0] - e_i)
        corners = loss(effect_CN[0] + e_i + e_j) - loss(effect_CN[0] + e_i - e_j) - loss(effect_CN[0] - e_i + e_j)
        second = (corners + loss(effect_CN[0] - e_i - e_j)) / (4 * step**2)
        prior = (i == j) / pairing.CLIENT_SPREAD**2
        assert own_CNN[0][i, j] == pytest.approx(second - prior, abs=1e-4)


def test_adaptive_asks_what_is_not_known_yet():
    """a and b have met with many clients, c with nobody: c plays."""
    tables = {f"c{i:02d}": Standings.of("abc") for i in range(12)}
    for i, table in enumerate(list(tables.values())[:-1]):
        table.record("a", "b", i % 2)
    planned = pairing.next_round("adaptive", tables, ["c11"], 0, 1)["c11"]
    assert "c" in planned.pairs[0] and planned.bye in {"a", "b"}


def test_adaptive_pairs_by_what_happened_with_this_client(monkeypatch):
    """All four are even over clients, but with this one a and b won and c and d lost: like plays like."""
    tables = {f"c{i:02d}": Standings.of("abcd") for i in range(41)}
    for client, table in tables.items():
        for a, b in combinations("abcd", 2):
            if client < "c39":
                table.record(a, b, 0.5)
            elif a + b in ("ac", "bd"):
                table.record(a, b, float(client == "c40"))

    def share_of_like_with_like() -> float:
        rounds = [pairing.next_round("adaptive", tables, ["c40"], seed, 2)["c40"].pairs for seed in range(20)]
        return float(np.mean([{frozenset(p) for p in r} == {frozenset("ab"), frozenset("cd")} for r in rounds]))

    assert share_of_like_with_like() == 1
    monkeypatch.setattr(pairing, "CLIENT_SPREAD", 1e-4)  # without effects only lots tell the pairs apart
    assert 0 < share_of_like_with_like() < 1


def test_a_match_that_could_not_be_judged_tells_nothing():
    table = Standings.of("ab")
    table.record("a", "b", None)
    assert table.points == {"a": 0.5, "b": 0.5} and table.met[frozenset("ab")] == 1 and table.results == []


@pytest.mark.parametrize(("name", "rounds", "matches"), [("swiss", 2, 4), ("round_robin", 3, 6), ("adaptive", 2, 4)])
def test_every_pairing_runs_the_stage(tmp_path, name, rounds, matches):
    entered, judge = field(clients=3), FakeJudge(order_free=True)
    with Journal(tmp_path, judge.identity) as journal:
        assert play(entered, in_turn(judge, journal), 0, name) == 0
        outcomes = journal.outcomes()
    assert len(outcomes) == entered.matches(name) == 3 * matches
    assert pairing.rounds_of(name, 4) == rounds
    again = FakeJudge(order_free=True)
    with Journal(tmp_path, again.identity) as journal:
        assert play(entered, in_turn(again, journal), 0, name) == 0
    assert again.calls == []  # the same matches are planned from what was judged


def test_rounds_that_need_rematches_are_refused():
    config = run.TournamentConfig(run="r", base="a", base_repeat="b", rounds=4)
    with pytest.raises(UserError, match="4 rounds of 4 contestants need rematches"):
        run.rounds_played(field(), config)
    assert run.rounds_played(field(), config.model_copy(update={"rounds": 3})) == 3


# --- the benchmark's own parts -------------------------------------------------------------------


@pytest.mark.parametrize("n", [6, 12])
def test_the_papers_separation_gives_the_papers_win_rates(n):
    theta_N = benchmark.strengths(n, "table 2")
    win_NN = 1 / (1 + np.exp(theta_N - theta_N[:, None]))
    rate_N = (win_NN.sum(axis=1) - 0.5) / (n - 1)
    published_N = np.array(benchmark.TABLE_2[:: 12 // n])[::-1]
    assert rate_N == pytest.approx(published_N - published_N.mean() + 0.5, abs=1e-6)


def test_simulated_verdicts_are_of_one_match_each():
    points_CNN = benchmark.verdicts(np.array([0.0, 1.0, 2.0]), 4000, np.random.default_rng(0))
    off_NN = ~np.eye(3, dtype=bool)
    assert np.all((points_CNN + points_CNN.swapaxes(1, 2))[:, off_NN] == 1)
    assert np.mean(points_CNN[:, off_NN] == 0.5) == pytest.approx(benchmark.TIES, abs=0.01)
    assert points_CNN[:, 2, 0].mean() > points_CNN[:, 1, 0].mean() > 0.5


def test_battles_at_a_width_lie_on_the_line_between_rounds():
    of = benchmark.Curve([100.0, 200.0, 400.0], [80.0, 40.0, 20.0], [])
    assert [benchmark.battles_at(w, of) for w in (80, 40, 20, 20 * 2**0.5, 10)] == pytest.approx(
        [100, 200, 400, 400 / 2**0.5, 800]
    )


def test_every_design_reads_the_same_verdicts():
    points_CNN = benchmark.verdicts(benchmark.strengths(4, 0.6), 10, np.random.default_rng(1))
    for name in ("swiss", "round_robin", "adaptive"):
        *_, wins_C1NN = benchmark.play(name, points_CNN, 3, seed=0)
        played = wins_C1NN[:, 0] + wins_C1NN[:, 0].swapaxes(1, 2) > 0
        assert np.array_equal(wins_C1NN[:, 0][played], points_CNN[played])
    assert played.sum() <= 10 * 12 and benchmark.one_field(9, 0) == (0, 1)

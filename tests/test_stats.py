"""psychepass.stats on cases worked by hand, and their coverage where the bootstrap fails."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as distributions

from psychepass import stats

T7 = 2.3646243  # the 97.5 % point of t with 7 degrees of freedom


def test_win_score_interval_adds_a_win_and_a_loss():
    # y = eight +1, one +1, one -1: mean 0.8, variance (10 - 10 * 0.64) / 9 = 0.4, standard error sqrt(0.4 / 10) = 0.2
    interval = stats.win_score_interval([1] * 8)
    assert interval.value == 1 and interval.n == 8 and interval.high == 1
    assert interval.low == pytest.approx(0.8 - T7 * 0.2)


def test_win_score_interval_of_ties_is_symmetric():
    # mean 0, variance 2 / 9, standard error sqrt(2 / 90)
    interval = stats.win_score_interval([0] * 8)
    assert (interval.low, interval.high) == pytest.approx((-T7 * math.sqrt(2 / 90), T7 * math.sqrt(2 / 90)))


def test_one_client_bounds_nothing():
    assert stats.win_score_interval([0.5]) == stats.Interval(value=0.5, low=-1, high=1, n=1)
    assert stats.share_interval([0.5]) == stats.Interval(value=0.5, low=0, high=1, n=1)
    alone = stats.jackknife_t([3.0], full=3.0)
    assert (alone.low, alone.high) == (-math.inf, math.inf)


def test_share_interval_adds_a_nought_and_a_one():
    # mean 0.9, variance (9 - 10 * 0.81) / 9 = 0.1, standard error 0.1
    interval = stats.share_interval([1] * 8)
    assert interval.low == pytest.approx(0.9 - T7 * 0.1) and interval.high == 1


def test_share_interval_with_weights():
    # clients 1 and 0 of weights 3 and 1; pseudo-clients weigh 2: p = 5 / 8, sum w²(x - p)² = 3.78125,
    # error sqrt(4 / 3 * 3.78125) / 8; the 75 % point of t with one degree of freedom is 1
    interval = stats.share_interval([1, 0], weights=[3, 1], level=0.5)
    error = math.sqrt(4 / 3 * 3.78125) / 8
    assert interval.value == 0.75
    assert (interval.low, interval.high) == pytest.approx((0.625 - error, 0.625 + error))


def test_equal_weights_are_no_weights():
    shares = [0.2, 0.9, 0.5, 0.75, 1.0]
    weighted, plain = stats.share_interval(shares, weights=[7] * 5), stats.share_interval(shares)
    assert (weighted.low, weighted.high) == pytest.approx((plain.low, plain.high))


@pytest.mark.parametrize("n", [8, 16])
@pytest.mark.parametrize("probabilities", [(0.98, 0.01, 0.01), (0.9, 0.05, 0.05), (0.5, 0.2, 0.3), (0.2, 0.6, 0.2)])
def test_win_score_interval_covers(n, probabilities):
    """Near the boundary too, where plain t and the bootstrap fail (one verdict a client: win, tie, loss)."""
    truth = probabilities[0] - probabilities[2]
    counts = np.random.default_rng(0).multinomial(n, probabilities, size=4000)
    distinct, times = np.unique(counts, axis=0, return_counts=True)
    covered = 0
    for (wins, ties, losses), weight in zip(distinct, times, strict=True):
        interval = stats.win_score_interval([1] * wins + [0] * ties + [-1] * losses)
        covered += weight * (interval.low <= truth <= interval.high)
    assert covered / 4000 >= 0.945  # 0.949 less the noise of 4,000 draws


def test_sign_flips_by_hand():
    # flips of (2, 1, -1) sum to 4, 2, 2, 0, 0, -2, -2, -4; the observed sum is 2
    assert stats.sign_flip_test([2, 1, -1]) == 6 / 8
    assert stats.sign_flip_test([2, 1, -1], "greater") == 3 / 8
    assert stats.sign_flip_test([2, 1, -1], "less") == 7 / 8
    assert stats.sign_flip_test([0, 0, 0]) == 1


def test_six_clients_are_the_least_for_five_percent():
    assert stats.sign_flip_test([0.1] * 5) == 2 / 32 > 0.05
    assert stats.sign_flip_test([0.1] * 6) == 2 / 64 < 0.05


def test_drawn_sign_flips_agree_with_all_of_them():
    rng = np.random.default_rng(3)
    d = rng.normal(0.25, 1, size=17)
    draws = 1 - 2 * ((np.arange(2**17)[:, None] >> np.arange(17)) & 1)
    exact = np.mean(np.abs(draws @ d) >= abs(d.sum()) - 1e-9)
    assert stats.sign_flip_test(d) == pytest.approx(exact, abs=0.02)
    assert stats.sign_flip_test(d) == stats.sign_flip_test(d)
    assert stats.sign_flip_test([1.0] * 40) == 1 / 10_000  # the observed flip is counted: never 0


def test_joint_max_t_by_hand():
    # both columns have the root sqrt(2); every flip leaves one sum at ±2 and the other at 0, so the largest
    # statistic is always sqrt(2): column 0 has p = 1/2 alone and 1 beside column 1
    assert stats.sign_flip_test([1, 1]) == 0.5
    assert stats.max_t_sign_flips([[1, 1], [1, -1]]).tolist() == [1, 1]


def test_joint_max_t_of_equal_columns_costs_nothing():
    d = np.array([0.3, 1.0, -0.2, 0.8, 0.5, 0.9, 0.1])
    assert stats.max_t_sign_flips(np.stack([d, 5 * d, 0 * d], axis=1)).tolist() == [stats.sign_flip_test(d)] * 2 + [1]


def test_eight_clients_can_reject_a_dimension_of_twelve():
    """Where Holm cannot (12 * 2/256 > 0.05): with a tie in a dimension no flip of it reaches eight wins of eight."""
    d_CD = np.random.default_rng(0).choice([-1.0, 1.0], size=(8, 12))
    d_CD[0], d_CD[:, 4] = 0, 1
    p_D = stats.max_t_sign_flips(d_CD)
    assert p_D[4] == 2 / 256 and all(p_D[d] >= stats.sign_flip_test(d_CD[:, d]) for d in range(12))


def test_joint_max_t_orders_as_t_does():
    d_CD = np.random.default_rng(1).normal(size=(6, 3))
    signs = 1 - 2 * ((np.arange(64)[:, None] >> np.arange(6)) & 1)

    def largest_t(x_CD):
        return np.abs(x_CD.mean(axis=0)) / (x_CD.std(axis=0, ddof=1) / math.sqrt(len(x_CD)))

    observed_D = largest_t(d_CD)
    flips_F = [largest_t(s[:, None] * d_CD).max() for s in signs]
    assert stats.max_t_sign_flips(d_CD) == pytest.approx([np.mean(np.array(flips_F) >= o - 1e-9) for o in observed_D])


def test_sign_flip_inversion_by_hand():
    # n = 6: K = floor(64 * 0.025) = 1, the least and the greatest mean of a set; n = 7: K = 3, and the means of
    # sets of 1..7 begin 1, 1.5, 2 and end 6, 6.5, 7
    six, seven = stats.mean_difference_interval(range(1, 7)), stats.mean_difference_interval(range(1, 8))
    assert (six.value, six.low, six.high, six.n) == (3.5, 1, 6, 6)
    assert (seven.value, seven.low, seven.high) == (4, 2, 6)


def test_five_clients_bound_no_mean():
    interval = stats.mean_difference_interval([1, 2, 3, 4, 5])
    assert (interval.low, interval.high) == (-math.inf, math.inf)
    assert interval.model_dump(mode="json") == {"value": 3.0, "low": None, "high": None, "n": 5}


@given(st.lists(st.floats(-5, 5), min_size=6, max_size=9))
@settings(max_examples=30, deadline=None, derandomize=True, database=None)
def test_inversion_interval_is_what_the_test_does_not_reject(diffs):
    interval, d = stats.mean_difference_interval(diffs), np.array(diffs)
    step = 1e-3
    for outside in (interval.low - step, interval.high + step):
        assert stats.sign_flip_test(d - outside) <= 0.05
    if interval.high - interval.low > 3 * step:
        for inside in (interval.low + step, interval.high - step):
            assert stats.sign_flip_test(d - inside) > 0.05


def test_drawn_inversion_is_close_to_t_for_normal_data():
    d = np.random.default_rng(5).normal(1, 1, size=40)
    interval = stats.mean_difference_interval(d)
    half = distributions.t.ppf(0.975, 39) * d.std(ddof=1) / math.sqrt(40)
    assert (interval.low, interval.high) == pytest.approx((d.mean() - half, d.mean() + half), abs=0.05)


def test_exact_binomial_by_hand():
    # one of two: the lower bound solves 1 - (1 - p)² = 0.025, the upper p² = 0.975
    one = stats.exact_binomial(1, 2)
    assert (one.low, one.high) == pytest.approx((1 - math.sqrt(0.975), math.sqrt(0.975)))
    assert stats.exact_binomial(0, 8).high == pytest.approx(1 - 0.025 ** (1 / 8))
    assert stats.exact_binomial(8, 8).low == pytest.approx(0.025 ** (1 / 8))
    # one-sided 5 %: no event among 29 clients excludes 10 %, among 100 excludes 3 %
    assert stats.exact_binomial(0, 29, level=0.9).high < 0.10 < stats.exact_binomial(0, 28, level=0.9).high
    assert stats.exact_binomial(0, 100, level=0.9).high < 0.03


def test_gate_verdicts():
    # eight ties: ± t(0.95; 7) sqrt(2 / 90), t = 1.8945786
    tied = stats.gate([0] * 8)
    assert tied.verdict == "NOT SHOWN"
    assert (tied.lower, tied.upper) == pytest.approx((-1.8945786 * math.sqrt(2 / 90), 1.8945786 * math.sqrt(2 / 90)))
    assert stats.gate([1] * 8).verdict == "NON-INFERIOR"
    assert stats.gate([-1] * 8).verdict == "REGRESSED"
    assert [stats.gate([0] * n).verdict for n in (22, 23)] == ["NOT SHOWN", "NON-INFERIOR"]
    assert stats.gate([0] * 8, margin=0.3).verdict == "NON-INFERIOR"


def test_gate_calls_a_sure_small_loss_regressed():
    small = stats.gate([-0.05] * 2000)
    assert small.lower > -0.10 and small.verdict == "REGRESSED"


def test_jackknife_of_a_mean_is_its_t_interval():
    # 1, 2, 3, 6: mean 3, variance 14 / 3, standard error sqrt(14 / 12); t(0.975; 3) = 3.1824463
    values = [1, 2, 3, 6]
    left_out = [(12 - v) / 3 for v in values]
    interval = stats.jackknife_t(left_out, full=3)
    assert (interval.low, interval.high) == pytest.approx(
        (3 - 3.1824463 * math.sqrt(14 / 12), 3 + 3.1824463 * math.sqrt(14 / 12))
    )


@pytest.mark.parametrize(
    "call",
    [
        lambda: stats.win_score_interval([]),
        lambda: stats.win_score_interval([1.5, 0]),
        lambda: stats.share_interval([-0.1, 0.5]),
        lambda: stats.share_interval([0.1, 0.5], weights=[1]),
        lambda: stats.sign_flip_test([1, math.nan]),
        lambda: stats.mean_difference_interval([[1, 2]]),  # type: ignore[list-item]
        lambda: stats.max_t_sign_flips([[1, math.inf]]),
        lambda: stats.exact_binomial(3, 2),
        lambda: stats.exact_binomial(0, 0),
    ],
)
def test_wrong_input_is_refused(call):
    with pytest.raises(ValueError, match=r"expected|got"):
        call()

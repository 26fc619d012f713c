"""Diversity on cases worked by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout_env.rubrics.diversity import WINDOW, diversity


def words(n: int, start: int = 0) -> str:
    return " ".join(f"w{i}" for i in range(start, start + n))


def test_all_different_words_in_a_full_window_are_one():
    assert diversity([words(WINDOW)]) == 1


def test_one_word_over_and_over():
    assert diversity(["word " * WINDOW]) == pytest.approx((1 / 200 + 1 / 199) / 2, abs=1e-6)


def test_two_windows_are_averaged():
    assert diversity([words(WINDOW), "word " * WINDOW]) == pytest.approx((1 + (1 / 200 + 1 / 199) / 2) / 2, abs=1e-6)


def test_the_last_window_ends_with_the_last_word():
    # windows 0..199 and 100..299: the second has 100 words of the first, all different
    assert diversity([words(300)]) == 1
    # the second window is 100 different words, then 100 times one: 101 words; 99 + 1 + 1 pairs of 199
    mixed = diversity([words(200), "word " * 100])
    assert mixed == pytest.approx((1 + (101 / 200 + 100 / 198) / 2) / 2, abs=1e-6)


def test_missing_words_count_as_repeated():
    assert diversity([words(100)]) == pytest.approx((100 / 200 + 99 / 199) / 2, abs=1e-6)
    assert diversity([words(10)]) < diversity([words(100)]) < diversity([words(200)])


def test_pairs_do_not_cross_replies():
    # 200 words in 2-word replies "a b": 1 pair type among 100 pairs
    assert diversity(["a b"] * 100) == pytest.approx((2 / 200 + 1 / 100) / 2, abs=1e-6)


def test_case_and_punctuation_do_not_matter():
    assert diversity(["You, you. YOU!"]) == diversity(["you you you"])
    assert diversity(["I’m"]) == diversity(["I'm"])


@pytest.mark.parametrize("replies", [[], [""], ["...", "  "]])
def test_silence_is_zero(replies):
    assert diversity(replies) == 0


def test_repeating_oneself_costs():
    assert diversity([words(20)] * 10) < diversity([words(20, 20 * i) for i in range(10)])


@given(st.lists(st.text(max_size=60), max_size=8))
def test_in_range(replies):
    assert 0 <= diversity(replies) <= 1

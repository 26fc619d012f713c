"""Splits: disjoint, complete, and the held-out wording shared with nobody."""

from __future__ import annotations

import pytest

from psychepass.errors import UserError
from psychepass.splits import Splits, shared_runs


def test_overlap_names_profile_and_sets() -> None:
    with pytest.raises(UserError, match=r"'ada': \['train', 'heldout'\]"):
        Splits(train=["ada"], test=["bo"], dev=[], heldout=["ada"]).of()
    with pytest.raises(UserError, match=r"'bo': \['test', 'test'\]"):
        Splits(train=["ada"], test=["bo", "bo"], dev=[], heldout=[]).of()
    assert Splits(train=["ada"], test=[], dev=[], heldout=["bo"]).of() == {"ada": "train", "bo": "heldout"}


def test_shared_runs_counts_words_not_punctuation() -> None:
    left = ["I keep thinking, it was all my own fault again."]
    right = ["Well: i keep thinking it was ALL my own luck"]
    assert shared_runs(left, right, 8) == {"i keep thinking it was all my own"}
    assert shared_runs(left, right, 9) == set()

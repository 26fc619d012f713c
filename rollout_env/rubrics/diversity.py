"""Diversity: how many different words and word pairs a therapist uses, whoever judges.

The mean of Distinct-1 and Distinct-2 (Li et al., 2016) over windows of WINDOW words of the replies in
their order. Windows of one size take away the effect of length, which plain Distinct-N has.
Chinese words are jieba's (psychepass/words.py).
Distinct-N rewards rare words, sense or not: it is compared, never used as a reward (notes/protocol).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from psychepass.words import spaced

WINDOW = 200
WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")


def diversity(replies: Sequence[str]) -> float:
    """In [0, 1], rounded to 1e-6; 0 where no word was said.

    The last window ends with the last word and may overlap the one before. Word pairs do not reach from
    one reply into the next. Departure: in a session of less than one window the missing words count as
    repeated, or saying little would be the way to win.
    """
    words = [
        (word.replace("’", "'"), i) for i, text in enumerate(replies) for word in WORD.findall(spaced(text.lower()))
    ]
    if not words:
        return 0.0
    starts = list(range(0, max(1, len(words) - WINDOW + 1), WINDOW))
    if len(words) > starts[-1] + WINDOW:
        starts.append(len(words) - WINDOW)
    return round(sum(_distinct(words[i : i + WINDOW]) for i in starts) / len(starts), 6)


def _distinct(window: list[tuple[str, int]]) -> float:
    """Mean of Distinct-1 and Distinct-2 of one window of (word, reply number)."""
    missing = max(0, WINDOW - len(window))
    pairs = [(a, b) for (a, i), (b, j) in pairwise(window) if i == j]
    distinct_1 = len({word for word, _ in window}) / (len(window) + missing)
    distinct_2 = len(set(pairs)) / (len(pairs) + missing) if pairs else 0.0
    return (distinct_1 + distinct_2) / 2

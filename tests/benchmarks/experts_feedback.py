"""The part of experts.py on feedback_esconv: rewritten replies against the helpers' own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np

from psychepass import records
from psychepass.stats import share_interval
from tests.benchmarks.figures import Figure
from tests.benchmarks.unscripted import last_reply
from tournament.lexicon import LexiconName, load_lexicon
from tournament.reference_judge import MIN_TAU

AREAS = {"Empathy": "Empathy", "Questions": "Engagement", "Suggestions": "Suggestion", "Validation": "validation",
         "Reflections": "reflection", "Self-disclosure": "", "Professionalism": "", "Structure": ""}  # fmt: skip
SUMMED = ("Empathy", "Engagement", "Suggestion", "validation")
LEXICONS: tuple[LexiconName, ...] = get_args(LexiconName)


class Pair(NamedTuple):
    """Words counts and features (by lexicon) of the rewritten reply and the helper's own."""

    dialogue: str
    area: str
    words: tuple[int, int]
    features: dict[LexiconName, tuple[dict[str, float], dict[str, float]]]


def pairs_of(file: Path, quick: bool) -> list[Pair]:
    from training import feedback_esconv
    from training.imported import checked_rows

    area_of = {dimension: area for area, dimension in feedback_esconv.AREAS.items()}
    made = feedback_esconv.conversational(records.read_json(file), file.name)
    rows = checked_rows(made, file.name, "empathy")
    dialogues = sorted({r.client for r in rows})[:: 5 if quick else 1]
    speaker = {"user": "client", "assistant": "helper"}
    found = []
    for row in rows:
        if row.client not in dialogues:
            continue
        sides = [[(speaker[m.role], m.content) for m in side] for side in (row.chosen, row.rejected)]
        words = tuple(len(side[-1][1].split()) for side in sides)
        of = {x: tuple(last_reply(side, load_lexicon(x)) for side in sides) for x in LEXICONS}
        found.append(Pair(row.client, area_of[row.dimension], words, of))  # type: ignore[arg-type]
    return found


def verdict(pair: Pair, lexicon: LexiconName, feature: str) -> int:
    """1: the rewritten reply; -1: the helper's own; 0: a tie."""
    rewritten, own = pair.features[lexicon]
    difference = rewritten[feature] - own[feature]
    return 0 if abs(difference) <= MIN_TAU else 1 if difference > 0 else -1


def overall(pair: Pair, lexicon: LexiconName) -> int:
    return int(np.sign(sum(verdict(pair, lexicon, f) for f in SUMMED)))


def share(name: str, pairs: Sequence[Pair], verdicts: Sequence[float]) -> Figure:
    """Mean of verdicts in [0, 1], over dialogues."""
    by: dict[str, list[float]] = {}
    for pair, v in zip(pairs, verdicts, strict=True):
        by.setdefault(pair.dialogue, []).append(v)
    ends = share_interval([float(np.mean(v)) for v in by.values()], [len(v) for v in by.values()])
    return Figure(name, ends.value, ends.low, ends.high, ends.n)


def feedback(pairs: Sequence[Pair]) -> list[Figure]:
    found = []
    for area, feature in {"all areas": "", **AREAS}.items():
        own = [p for p in pairs if area in ("all areas", p.area)]
        if not own:
            continue
        ways: dict[str, list[int]] = {}
        for x in LEXICONS:
            if feature:
                ways[f"reference-{x}, {feature}"] = [verdict(p, x, feature) for p in own]
            ways[f"reference-{x}, overall"] = [overall(p, x) for p in own]
        ways["longer"] = [int(np.sign(p.words[0] - p.words[1])) for p in own]
        for way, said in ways.items():
            found.append(share(f"feedback/{area}/{way}", own, [(v + 1) / 2 for v in said]))
            found.append(share(f"feedback/{area}/{way}/ties", own, [float(v == 0) for v in said]))
            strict = [(p, (v + 1) / 2) for p, v in zip(own, said, strict=True) if v]
            if strict:
                found.append(share(f"feedback/{area}/{way}/where it decides", *map(list, zip(*strict, strict=True))))
        if area == "all areas":
            for x in LEXICONS:
                found += against_longer(own, f"reference-{x}", ways[f"reference-{x}, overall"], ways["longer"])
    return found


def against_longer(pairs: Sequence[Pair], judge: str, said: Sequence[int], longer: Sequence[int]) -> list[Figure]:
    """The judge's share less the longer reply's on the same pairs, and the longer reply's where the judge decides."""
    middle = share(
        f"feedback/all areas/{judge}, overall - longer",
        pairs,
        [0.5 + (a - b) / 4 for a, b in zip(said, longer, strict=True)],
    )
    decided = [(p, (b + 1) / 2) for p, a, b in zip(pairs, said, longer, strict=True) if a]
    there = f"feedback/all areas/longer/where {judge} decides"
    found = [middle._replace(value=2 * middle.value - 1, low=2 * middle.low - 1, high=2 * middle.high - 1)]
    return found + ([share(there, [p for p, _ in decided], [v for _, v in decided])] if decided else [])

"""Which profiles become clients: near-duplicates, strata, and the draw of the four sets. Pure functions.

The strata are topic x emotional intensity (PsychePass, Appendix A, gives the shares of the topics; the three bands
of intensity, in equal parts, are ours). Within a stratum the best scored come first (section 3.1.1).
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from psychepass.errors import UserError
from psychepass.schema import Profile, content_hash
from psychepass.splits import RUN_WORDS, SPLITS
from psychepass.words import runs
from rollout_env.profile_records import Duplicate, Scores, Selected
from rollout_env.profile_sources import profile_text
from rollout_env.profiles import TOPICS

Band = Literal["low", "moderate", "high"]
Stratum = tuple[str, Band]
BANDS: dict[Band, tuple[int, int]] = {"low": (1, 2), "moderate": (3, 3), "high": (4, 5)}
NGRAM = 5  # characters, so that Chinese needs no word boundaries
PERMUTATIONS = 128


def shingles(text: str) -> set[str]:
    """Its character n-grams, white space and case aside; a shorter text is one."""
    flat = " ".join(text.lower().split())
    return {flat[i : i + NGRAM] for i in range(max(1, len(flat) - NGRAM + 1))}


def near_duplicates(texts: Mapping[str, str], threshold: float, step: Literal["seeds", "profiles"]) -> list[Duplicate]:
    """What to drop: of two texts whose n-grams have a Jaccard similarity of `threshold` or more, the later one.

    `texts`: id -> text, the one to keep first. A text is compared with those that are kept. MinHash finds the
    candidates, the exact similarity decides, so nothing is dropped by an estimate; a pair at the threshold may be
    overlooked, with a chance that falls quickly above it.
    """
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError as e:
        from rollout_env.deidentify import INSTALL

        raise UserError(f"stage profiles needs the package {e.name} to find near-duplicates: {INSTALL}") from e
    index = MinHashLSH(threshold=max(0.1, 0.8 * threshold), num_perm=PERMUTATIONS)  # leans to too many candidates
    kept: dict[str, set[str]] = {}
    found = []
    for name, text in texts.items():
        grams = shingles(text)
        sketch = MinHash(num_perm=PERMUTATIONS)
        sketch.update_batch([g.encode() for g in sorted(grams)])
        near = {k: jaccard(grams, kept[k]) for k in map(str, index.query(sketch))}
        closest = max(near, key=lambda k: (near[k], k), default="")
        if closest and near[closest] >= threshold:
            found.append(Duplicate(step=step, dropped=name, kept=closest, similarity=round(near[closest], 4)))
        else:
            kept[name] = grams
            index.insert(name, sketch)
    return found


def jaccard(left: set[str], right: set[str]) -> float:
    return len(left & right) / len(left | right)


def band_of(intensity: int) -> Band:
    return next(b for b, (low, high) in BANDS.items() if low <= intensity <= high)


def quotas(total: int, shares: Mapping[str, float], least_intensity: int) -> dict[Stratum, int]:
    """How many of `total` each stratum gets, by largest remainder; the sum is `total`.

    `shares`: topic -> share; the topics it leaves out share equally what is left. Bands below `least_intensity`
    have no one in the pool and get none.

    Raises:
        UserError: an unknown topic, a negative share, or shares above 1 (or below, where all topics are named).
    """
    unknown = sorted(set(shares) - set(TOPICS))
    if unknown:
        raise UserError(f"topic_shares names {', '.join(unknown)}; permitted: {', '.join(TOPICS)}")
    rest = [t for t in TOPICS if t not in shares]
    left = 1 - sum(shares.values())
    if min(shares.values(), default=0) < 0 or left < -1e-9 or (not rest and left > 1e-9):
        raise UserError(f"topic_shares add up to {1 - left:g}; permitted: shares from 0 that add up to 1 at most")
    bands: list[Band] = [b for b, (_, high) in BANDS.items() if high >= least_intensity]
    exact: dict[tuple[str, Band], float] = {
        (t, b): total * shares.get(t, max(left, 0) / len(rest) if rest else 0) / len(bands)
        for t in map(str, TOPICS)
        for b in bands
    }
    given = {s: math.floor(x + 1e-9) for s, x in exact.items()}
    by_remainder = sorted(exact, key=lambda s: (-(round(exact[s] - given[s], 9)), s))
    for stratum in by_remainder[: total - sum(given.values())]:
        given[stratum] += 1
    return given


def interleaved(sizes: Mapping[str, int]) -> list[str]:
    """Each set's name as often as its size, spread evenly: every stretch holds the sets in proportion."""
    total, given = sum(sizes.values()), dict.fromkeys(sizes, 0)
    order = []
    for n in range(1, total + 1):
        name = max(sizes, key=lambda s: (sizes[s] * n / total - given[s], sizes[s] > given[s], -list(sizes).index(s)))
        given[name] += 1
        order.append(name)
    return order


class Draw(NamedTuple):
    """`short`: stratum -> how many of its quota it could not give. `passed_over`: profiles that could not go where
    they were due, because they share eight words with the other side, and with whom they share them."""

    selected: list[Selected]
    short: dict[Stratum, int]
    passed_over: dict[str, str]


def draw(
    pool: Sequence[tuple[Profile, Scores]],
    sizes: Mapping[str, int],
    shares: Mapping[str, float],
    least_intensity: int,
    fill: bool,
    seed: int,
) -> Draw:
    """The four sets. `fill`: where a stratum is short, the best that are left over stand in, marked as such.

    No text of a held-out profile shares a run of eight words with one of another set (psychepass/splits.py): a
    profile that would is passed over for the next one, and may still be drawn for its own side.

    Raises:
        UserError: as `quotas`.
    """
    wanted = quotas(sum(sizes.values()), shares, least_intensity)
    queues: dict[Stratum, list[tuple[Profile, Scores]]] = defaultdict(list)
    for profile, scores in sorted(pool, key=lambda ps: _rank(ps, seed)):
        queues[profile.topic, band_of(scores.emotional_intensity)].append((profile, scores))
    order, rng, sides = iter(interleaved({s: sizes[s] for s in SPLITS})), random.Random(seed), _Sides()
    selected: list[Selected] = []
    short: dict[Stratum, int] = {}
    empty: list[str] = []
    for stratum, quota in wanted.items():
        slots = [next(order) for _ in range(quota)]
        rng.shuffle(slots)  # no set has the first pick of each stratum
        left = [slot for slot in slots if not _take(slot, queues[stratum], sides, selected, filled=False)]
        empty += left
        if left:
            short[stratum] = len(left)
    if fill:
        spare = sorted((ps for queue in queues.values() for ps in queue), key=lambda ps: _rank(ps, seed))
        for slot in empty:
            _take(slot, spare, sides, selected, filled=True)
    return Draw(sorted(selected, key=lambda s: SPLITS.index(s.split)), short, sides.passed_over)


def _rank(scored: tuple[Profile, Scores], seed: int) -> tuple[float, str]:
    """The best first; equals in an order of the seed's."""
    profile, scores = scored
    return -scores.quality, content_hash([seed, profile.profile_id])


def _take(
    split: str, queue: list[tuple[Profile, Scores]], sides: _Sides, selected: list[Selected], filled: bool
) -> bool:
    """Move the first of the queue that may stand on this side into the set."""
    for place, (profile, scores) in enumerate(queue):
        if sides.admit(profile, held=split == "heldout"):
            del queue[place]
            band = band_of(scores.emotional_intensity)
            known = {"topic": profile.topic, "intensity": band, "quality": round(scores.quality, 4), "filled": filled}
            selected.append(Selected.model_validate({"profile_id": profile.profile_id, "split": split, **known}))
            return True
    return False


class _Sides:
    """Runs of eight words that each side has said so far, and who said them."""

    def __init__(self) -> None:
        self._owner: dict[bool, dict[str, str]] = {True: {}, False: {}}
        self.passed_over: dict[str, str] = {}

    def admit(self, profile: Profile, held: bool) -> bool:
        mine, other = runs(profile_text(profile).split("\n"), RUN_WORDS), self._owner[not held]
        shared = min((r for r in mine if r in other), default="")
        if shared:
            self.passed_over[profile.profile_id] = other[shared]
            return False
        self._owner[held].update(dict.fromkeys(mine, profile.profile_id))
        return True

"""Which matches a study of human raters looks at, and in which order each rater sees them (PsychePass, section 4.4).

Pure functions of a run's battles and a seed. Strata by strength: the first half of the overall ranking (the middle one
included) is strong, the rest weak; a stratum is what kind met what kind. From each the same number of matches is drawn,
from as many different clients as there are, and a number of dimensions for each match, every dimension about as often.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from psychepass.errors import UserError
from psychepass.schema import Battle, Dimension, Session, Winner
from tournament.judge import POINTS

STRATA = ("strong-strong", "strong-weak", "weak-weak")
LETTERS = "bcdfghjklmnpqrstvwxz"  # codes of letters alone, which a spreadsheet takes for neither number nor date
# a reply that names a model tells the rater who speaks; ASCII, so that a name may stand between Chinese characters
MODEL_NAMES = re.compile(
    r"\b(?:(?:chat)?gpt|qwen|tongyi|claude|anthropic|openai|gemini|deepseek|(?:chat)?glm|llama|mistral|smollm|doubao"
    r"|kimi|grok|phi-\d|gemma)(?:\b|[-\d])|通义|千问|文心一言|豆包|混元|智谱|深度求索",
    re.IGNORECASE | re.ASCII,
)


@dataclass(frozen=True)
class Match:
    """Two sessions of one client and the judge's verdicts, `first` in the place of A; both orders are taken together:
    the side with more points of the two, else a tie."""

    client: str
    stratum: str
    first: str
    second: str
    contestants: tuple[str, str]
    verdicts: Mapping[Dimension, Winner]


@dataclass(frozen=True)
class Case:
    """A drawn match with the dimensions it is rated on."""

    name: str
    match: Match
    dimensions: tuple[Dimension, ...]


@dataclass(frozen=True)
class Shown:
    """How one rater sees a case: under which code, and whether the second session stands in the place of A."""

    case: str
    code: str
    swapped: bool
    items: Mapping[Dimension, str]  # dimension -> the code of its row, in the order of the rows


def matches_of(battles: Iterable[Battle], ranking: Sequence[str]) -> list[Match]:
    """A run's matches, in an order that depends on the sessions alone."""
    strong = set(ranking[: (len(ranking) + 1) // 2])
    met: dict[tuple[str, str], list[Battle]] = {}
    for battle in battles:
        first, second = sorted((battle.session_a, battle.session_b))
        met.setdefault((first, second), []).append(battle if battle.session_a == first else battle.swapped())
    found = []
    for (first, second), orders in sorted(met.items()):
        names = (orders[0].contestant_a, orders[0].contestant_b)
        stratum = STRATA[sum(name not in strong for name in names)]
        verdicts: dict[Dimension, Winner] = {d: _winner([b.verdicts[d].winner for b in orders]) for d in Dimension}
        found.append(Match(orders[0].profile_id, stratum, first, second, names, verdicts))
    return found


def _winner(orders: Sequence[Winner]) -> Winner:
    points = sum(POINTS[w] - 0.5 for w in orders)
    return "A" if points > 0 else "B" if points < 0 else "tie"


def names_itself(session: Session) -> bool:
    """Whether a reply names its own contestant (names of one or two letters aside) or a model."""
    own = {n for n in (session.therapist.name, session.therapist.family) if len(n) > 2}
    words = "|".join(map(re.escape, own)) or "(?!)"
    named = re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE | re.ASCII)
    return any(named.search(t.therapist) or MODEL_NAMES.search(t.therapist) for t in session.turns)


def draw(
    matches: Sequence[Match], per_stratum: int, n_dimensions: int, dimensions: Sequence[Dimension], seed: int
) -> list[Case]:
    """The cases of a study. A stratum without a match is left out.

    Raises:
        UserError: a stratum with too few matches, or more dimensions asked for than there are.
    """
    if n_dimensions > len(dimensions):
        raise UserError(f"dimensions: {n_dimensions} a case; permitted: 1 to {len(dimensions)}")
    rng, cases = random.Random(f"audit {seed}"), []
    for stratum in STRATA:
        pool = [m for m in matches if m.stratum == stratum]
        if pool and len(pool) < per_stratum:
            raise UserError(
                f"cases: {per_stratum} of each stratum are asked for, and {stratum} has {len(pool)} matches that can "
                f"be shown; permitted here: 1 to {len(pool)} on its account"
            )
        rng.shuffle(pool)
        met: Counter[str] = Counter()
        used: Counter[Dimension] = Counter()
        for _ in range(per_stratum if pool else 0):
            match = min(pool, key=lambda m: met[m.client])  # the first of the least met clients
            pool.remove(match)
            met[match.client] += 1
            shuffled = rng.sample(list(dimensions), len(dimensions))
            picked = sorted(shuffled, key=used.__getitem__)[:n_dimensions]
            used.update(picked)
            of_case = tuple(d for d in Dimension if d in picked)
            cases.append(Case(f"{stratum}-{met.total():02d}", match, of_case))
    return cases


def presentation(cases: Sequence[Case], rater: str, seed: int, taken: set[str]) -> list[Shown]:
    """One rater's order of cases, half of them swapped, under codes that nobody else has (`taken`, which grows)."""
    rng = random.Random(f"audit {seed} {rater}")
    order = rng.sample(list(cases), len(cases))
    swaps = [i % 2 == 1 for i in range(len(order))]
    rng.shuffle(swaps)
    return [
        Shown(c.name, code(rng, taken), swapped, {d: code(rng, taken) for d in c.dimensions})
        for c, swapped in zip(order, swaps, strict=True)
    ]


def code(rng: random.Random, taken: set[str]) -> str:
    """Six letters that are not taken yet."""
    while (made := "".join(rng.choices(LETTERS, k=6))) in taken:
        continue
    taken.add(made)
    return made

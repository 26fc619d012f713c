"""The four disjoint sets of clients, and what may never be shared between the held-out set and the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import get_args

from psychepass.config import Config
from psychepass.errors import UserError
from psychepass.schema import Profile, Script, Session
from psychepass.words import runs

Split = str
RUN_WORDS = 8  # in a row, that the held-out set may not share with the rest
SPLITS: tuple[str, ...] = get_args(Session.model_fields["split"].annotation)


class Splits(Config):
    """Profile ids by set: train trains the reward model and the policy, test is its reported accuracy,
    dev is for all tuning, heldout for the final comparison only."""

    train: list[str]
    test: list[str]
    dev: list[str]
    heldout: list[str]

    def of(self) -> dict[str, Split]:
        """profile id -> set.

        Raises:
            UserError: a profile stands in two sets, or twice in one.
        """
        every = [(p, s) for s in SPLITS for p in getattr(self, s)]
        twice = [p for p, n in Counter(p for p, _ in every).items() if n > 1]
        if twice:
            where = {p: [s for q, s in every if q == p] for p in twice}
            raise UserError(f"splits overlap: {where}; each profile belongs to exactly one of {', '.join(SPLITS)}")
        return dict(every)


def shared_runs(left: Iterable[str], right: Iterable[str], length: int = RUN_WORDS) -> set[str]:
    """Runs of `length` words (psychepass/words.py) that stand in a text of both sides."""
    return runs(left, length) & runs(right, length)


def check_heldout(scripts: Iterable[Script], split_of: Mapping[str, Split]) -> None:
    """Refuse held-out clients whose needs and techniques are another set's, or that share eight words in a row with it.

    Raises:
        UserError: with the client and its bank, or the shared words.
    """
    held: list[str] = []
    rest: list[str] = []
    for script in scripts:
        if script.profile_id not in split_of:
            raise UserError(f"profile {script.profile_id!r} stands in none of the sets {', '.join(SPLITS)}")
        split = split_of[script.profile_id]
        bank = "heldout" if split == "heldout" else "common"
        if script.bank != bank:
            raise UserError(
                f"{script.profile_id}: the script's bank is {script.bank!r}; the set {split!r} permits {bank!r} alone, "
                "so that held-out clients share no need or technique with the rest"
            )
        (held if split == "heldout" else rest).extend(t.client.trigger for t in script.turns)
    shared = shared_runs(held, rest)
    if shared:
        raise UserError(
            f"held-out clients share {len(shared)} runs of {RUN_WORDS} words with the rest, e.g. {min(shared)!r}"
        )


def unverified(profiles: Iterable[Profile]) -> str:
    """What is printed wherever client profiles appear that no person has verified; empty where all are verified."""
    marks = [p.human_verified for p in profiles]
    n = marks.count(False)
    return f"{n} of {len(marks)} client profiles are not verified by a person" if n else ""

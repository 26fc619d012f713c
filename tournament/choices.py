"""Best of n: replies chosen by their rewards, put together as sessions, and what the judges say of them.

Pure functions. Legend: R replies to one turn, D dimensions.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from psychepass import stats
from psychepass.errors import UserError
from psychepass.schema import Battle, Record, Session, Winner, content_hash
from psychepass.scoring import constant
from tournament import comparison
from tournament.paired_rewards import PromptRewards
from tournament.play import Match


class Draw(Record):
    """A line of best_of_n/draws.jsonl. `best` and `other` are places among each turn's replies, in turn order.

    Null where a turn has too few replies: there both sides keep the session's own. `winners` by judge and
    measure: A is the side of the choices. LLM judges decide twice, in both orders: `judge` and `judge_2`, of which one
    or both may be missing. `gain` is the mean difference of the scores of `scores_of`.
    """

    KEY_FIELDS = ("session", "n", "draw")

    profile_id: str
    session: str
    n: int
    draw: int
    best: tuple[int | None, ...]
    other: tuple[int | None, ...]
    gain: float
    winners: dict[str, dict[str, Winner]]


class Duel(NamedTuple):
    """A draw before it is judged; fields as of Draw. The choices are the match's session at A."""

    n: int
    draw: int
    session: str
    best: tuple[int | None, ...]
    other: tuple[int | None, ...]
    gain: float
    match: Match

    def draw_of(self, battles: Mapping[str, Sequence[Battle]]) -> Draw:
        """With the verdicts, by role."""
        winners = {
            role if i == 1 else f"{role}_{i}": winners_of(battle)
            for role, of_role in battles.items()
            for i, battle in enumerate(of_role, start=1)
        }
        given = {k: v for k, v in self._asdict().items() if k != "match"}
        return Draw(profile_id=self.match.a.profile_id, **given, winners=winners)


class Answers(NamedTuple):
    """The replies to one turn and their scores; neither where there were too few."""

    turn: int
    replies: tuple[str, ...]
    scores: tuple[float, ...]


class Choice(NamedTuple):
    """One turn of a draw: places of the reward model's choice and of the random reply, and the difference in score."""

    best: int | None
    other: int | None
    gain: float


def scores_of(rewards_RD: Sequence[Sequence[float]]) -> tuple[float, ...]:
    """A reply's score: its rewards standardised within the turn a dimension, then averaged, as in GRPO.

    A dimension on which all replies are alike, up to rounding, says nothing and adds 0.
    """
    columns_DR = []
    for column in zip(*rewards_RD, strict=True):
        mean, std = statistics.fmean(column), statistics.pstdev(column)
        columns_DR.append([0.0 if constant(mean, std) else (r - mean) / std for r in column])
    return tuple(statistics.fmean(of_reply) for of_reply in zip(*columns_DR, strict=True))


def answers_of(rewards: Iterable[PromptRewards], samples: int) -> dict[str, list[Answers]]:
    """session -> its turns in order; a turn with fewer than `samples` replies has none here."""
    found: dict[str, list[Answers]] = {}
    for r in sorted(rewards, key=lambda r: r.turn):
        whole = len(r.replies) == samples
        answers = Answers(r.turn, r.replies, scores_of(r.rewards)) if whole else Answers(r.turn, (), ())
        found.setdefault(r.session, []).append(answers)
    return found


def choose(answers: Answers, n: int, seed: str) -> Choice:
    """The best of the first n shuffled replies against the last one; there are more than n."""
    if not answers.replies:
        return Choice(None, None, 0.0)
    order = random.Random(seed).sample(range(len(answers.replies)), len(answers.replies))
    best, other = max(order[:n], key=answers.scores.__getitem__), order[-1]
    return Choice(best, other, answers.scores[best] - answers.scores[other])


def choices_of(turns: Sequence[Answers], session: Session, n: int, draw: int, seed: int) -> list[Choice]:
    """A draw's choice at each turn; the shuffle does not depend on n, so that a larger n sees more of the same."""
    return [choose(a, n, content_hash([seed, session.id, a.turn, draw])) for a in turns]


def composed(session: Session, turns: Sequence[Answers], places: Sequence[int | None]) -> Session:
    """The session with the replies at those places; null keeps the session's own."""
    said = {a.turn: a.replies[i] for a, i in zip(turns, places, strict=True) if i is not None}
    changed = [t.model_copy(update={"therapist": said[t.turn], "logprob": None}) if t.turn in said else t
               for t in session.turns]  # fmt: skip
    return session.model_copy(update={"turns": tuple(changed)})


def winners_of(battle: Battle) -> dict[str, Winner]:
    """By measure, as in tournament.comparison."""
    return {comparison.OVERALL: battle.overall.winner, **{d.value: v.winner for d, v in battle.verdicts.items()}}


def gain(draws: Sequence[Draw], battles: Mapping[str, Sequence[Battle]], seed: int) -> dict[str, Any]:
    """What choosing is worth: tournament.comparison's rows by judge, and the gain in score of the replies chosen.

    `battles` by role (tournament/measuring.py), with the choices at A. Draws are averaged within the client first.

    Raises:
        UserError: the judge read none.
    """
    if not battles["judge"]:
        raise UserError("best-of-n: no judgement could be read; see the judges' failures.jsonl")
    tables = {}
    for role, of_role in battles.items():
        found = comparison.outcomes(of_role, {b.session_a for b in of_role})
        tables[role] = comparison.table(found, of_role[0].judge.name, seed)
    by_client: dict[str, list[float]] = {}
    for draw in draws:
        by_client.setdefault(draw.profile_id, []).append(draw.gain)
    ends = stats.mean_difference_interval([float(np.mean(v)) for _, v in sorted(by_client.items())], seed=seed)
    return {
        **tables["judge"],
        **{role: table for role, table in tables.items() if role != "judge"},
        "gaming": comparison.mark_gaming(tables.get("reference", tables["judge"]), tables["shadow"]),
        "reward_score": ends.model_dump(mode="json"),
    }

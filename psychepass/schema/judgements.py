"""Judgements: battles with their verdicts, failures, ratings."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from psychepass.schema.base import Dimension, Frozen, Record, Split, Usage

Winner = Literal["A", "B", "tie"]
SWAPPED: dict[Winner, Winner] = {"A": "B", "B": "A", "tie": "tie"}


class Verdict(Frozen):
    """Who did better, and the judge's reason."""

    winner: Winner
    reason: str = ""


class JudgeIdentity(Frozen):
    """`order_free`: the judge scores each session without seeing the other, so that both orders agree
    by construction and are counted once."""

    name: str
    model: str
    rubric_version: str
    prompt_hash: str = ""
    order_free: bool = False


class Vote(Frozen):
    """What one judge of a panel decided on one presentation."""

    judge: JudgeIdentity
    verdicts: dict[Dimension, Verdict]
    overall: Verdict


class Battle(Record):
    """One presentation of two sessions of one client to one judge, or to a panel of judges.

    `verdicts` covers all 12 dimensions; `overall` is the judge's comprehensive evaluation. Of a panel, `judge` is the
    panel, the verdicts are its majority's, and `votes` holds what each of its judges decided; of a single judge there
    are none, and the record is written without the field.
    """

    KEY_FIELDS = ("session_a", "session_b", "judge")

    profile_id: str
    split: Split
    round: int = Field(ge=0)
    session_a: str
    session_b: str
    contestant_a: str
    contestant_b: str
    judge: JudgeIdentity
    verdicts: dict[Dimension, Verdict]
    overall: Verdict
    votes: tuple[Vote, ...] = ()
    usage: Usage = Usage()

    @model_serializer(mode="wrap")
    def _without_empty_votes(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        written = handler(self)
        if not self.votes:
            written.pop("votes", None)
        return written

    @model_validator(mode="after")
    def _check_verdicts(self) -> Self:
        for verdicts in (self.verdicts, *(v.verdicts for v in self.votes)):
            missing = [d.value for d in Dimension if d not in verdicts]
            if missing:
                raise ValueError(f"no verdict on {', '.join(missing)}; all 12 dimensions are required")
        if self.session_a == self.session_b:
            raise ValueError(f"a session cannot battle itself: {self.session_a}")
        return self

    def swapped(self) -> Battle:
        """The same judgement with A and B exchanged; swapped twice it is the original."""

        def flip(v: Verdict) -> Verdict:
            return v.model_copy(update={"winner": SWAPPED[v.winner]})

        def flipped(decided: Battle | Vote) -> dict[str, Any]:
            verdicts = {d: flip(v) for d, v in decided.verdicts.items()}
            return {"verdicts": verdicts, "overall": flip(decided.overall)}

        return self.model_copy(
            update={
                "session_a": self.session_b,
                "session_b": self.session_a,
                "contestant_a": self.contestant_b,
                "contestant_b": self.contestant_a,
                "votes": tuple(v.model_copy(update=flipped(v)) for v in self.votes),
                **flipped(self),
            }
        )


class Failure(Record):
    """Something that could not be read or done; never counted as a tie, a loss or a zero."""

    KEY_FIELDS = ("stage", "subject")

    stage: str
    subject: str
    reason: str
    detail: str = ""
    usage: Usage = Usage()


class Rating(Frozen):
    """A contestant's rating on the scale of baseline 100 and 400/ln 10, with a 95 % interval."""

    contestant: str
    rating: float
    low: float
    high: float
    rank_low: int
    rank_high: int
    battles: int
    win_rate: float

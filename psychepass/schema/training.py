"""Training data: preference pairs, RL prompts, rewards, ratings by a rubric."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from psychepass.schema.base import Dimension, Frozen, Phase, Record, Split, Usage
from psychepass.schema.judgements import JudgeIdentity


class Side(Frozen):
    """The replies of one session that a comparison is about."""

    session: str
    turns: tuple[int, ...] = Field(min_length=1)


class PreferencePair(Record):
    """On `dimension`, the chosen side was judged better in every battle named.

    A side's reward is the mean of r(turn, dimension) over its turns (notes/protocol: keeps the reward
    in distribution for prompts in mid-session). `weight` in (0, 1] is the share of judges that agreed.
    """

    KEY_FIELDS = ("dimension", "chosen", "rejected")

    profile_id: str
    split: Split
    dimension: Dimension
    chosen: Side
    rejected: Side
    battles: tuple[str, ...] = Field(min_length=1)
    weight: float = Field(default=1.0, gt=0, le=1)


class Message(Frozen):
    """A chat message in the OpenAI form; the therapist is the assistant."""

    role: Literal["system", "user", "assistant"]
    content: str


class RLPrompt(Record):
    """A turn of a base-policy session, to be answered anew. The policy sees `messages` alone."""

    KEY_FIELDS = ("session", "turn")

    profile_id: str
    split: Split
    session: str
    turn: int
    phase: Phase
    dimensions: tuple[Dimension, ...] = Field(min_length=1)
    messages: tuple[Message, ...] = Field(min_length=1)
    prompt_tokens: int
    dropped_turns: int = 0


class Reward(Record):
    """A reward model's raw score of one reply on one dimension."""

    KEY_FIELDS = ("model", "session", "turn", "dimension")

    model: str
    session: str
    turn: int
    dimension: Dimension
    value: float


class RubricRating(Record):
    """A rating of one session on one item of a versioned rubric (e.g. CTRS 0..6, a safety label 0/1)."""

    KEY_FIELDS = ("session", "rubric", "rubric_version", "item", "judge")

    session: str
    rubric: str
    rubric_version: str
    item: str
    value: float
    reason: str = ""
    judge: JudgeIdentity
    usage: Usage = Usage()

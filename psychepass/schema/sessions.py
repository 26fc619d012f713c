"""Sessions: who answered, every turn, and what was in progress at a kill."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from psychepass.schema.base import Dimension, Frozen, Phase, Record, Split, Usage


class Sampling(Frozen):
    """How replies are drawn; `max_tokens` bounds one reply."""

    temperature: float = Field(default=1.0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_tokens: int = Field(default=256, ge=1)


class Identity(Frozen):
    """Who speaks: enough to tell two speakers apart and to make one again.

    `family` is shared by contestants that differ in seed, temperature or prompt only (same weights);
    `weights` is a hash of local weights, or the endpoint's model name and address without its key. `imported`
    is a speaker of outside preference data (training/imported.py), of whom nothing else is known.
    """

    name: str
    kind: Literal["scripted", "rules", "local", "endpoint", "imported"]
    family: str
    weights: str = ""
    prompt_hash: str = ""
    sampling: Sampling | None = None
    seed: int = 0


class Turn(Frozen):
    """One exchange. `logprob` is the mean natural-log probability a token of the reply, if known."""

    turn: int = Field(ge=1)
    phase: Phase
    dimension: Dimension | None
    client: str
    therapist: str
    logprob: float | None = None


class Session(Record):
    """A whole conversation between one client and one therapist.

    `target_words` is the reply length that the environment asks every therapist for. `violations` counts, by kind,
    the lines of an LLM client that left their script (rollout_env/adherence.py); a scripted client has none.
    """

    KEY_FIELDS = ("profile_id", "script_id", "therapist", "client", "target_words", "seed")

    profile_id: str
    script_id: str
    split: Split
    therapist: Identity
    client: Identity
    target_words: int = Field(ge=1)
    seed: int
    turns: tuple[Turn, ...] = Field(min_length=1)
    violations: dict[str, int] = Field(default_factory=dict, exclude_if=lambda counts: not counts)
    usage: Usage = Usage()

    def reply_turns(self, dimension: Dimension) -> tuple[int, ...]:
        """The turns whose replies stand for `dimension`, as Script.probes defines them."""
        if dimension.is_global:
            return tuple(max(t.turn for t in self.turns if t.phase == p) for p in Phase)
        return tuple(t.turn for t in self.turns if t.dimension is dimension)


class TurnRecord(Record):
    """A turn of a session that is still open: written at once, so that a kill loses nothing said."""

    KEY_FIELDS = ("session_key", "turn")

    session_key: str
    turn: Turn
    usage: Usage = Usage()


class ClientLine(Record):
    """One draft of an LLM client's line, written before anything else of its session is asked.

    `attempt` is 0, and 1 for the one retry. `violations` are kinds of rollout_env/adherence.py; `text` is empty where
    nothing readable came, and where what came is withheld.
    """

    KEY_FIELDS = ("session_key", "turn", "attempt")

    session_key: str
    turn: int = Field(ge=1)
    attempt: Literal[0, 1]
    text: str
    violations: tuple[str, ...] = ()
    detail: str = ""
    usage: Usage = Usage()

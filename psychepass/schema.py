"""The records that stages exchange: frozen, strict, and traceable to their parents.

Two hashes identify a record. `key` covers the inputs that made it and decides what is still missing
when a stage is run again; `id` covers the content, without usage and time, and names the record.
Turn numbers are dialogue turns, counted from 1; a script turn number skips the empty turns.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from enum import IntEnum, StrEnum
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    computed_field,
    model_serializer,
    model_validator,
)

SCHEMA_VERSION = 1


class Category(StrEnum):
    """The paper's three groups of dimensions (section 3.1.2)."""

    ALLIANCE = "Alliance Building"
    TECHNIQUE = "Professional Technique"
    RELIABILITY = "Reliability Support"


class Dimension(StrEnum):
    """The 12 competency dimensions (PsychePass, Table 4), in the paper's order."""

    EMPATHY = "empathy"
    DISCERNMENT = "discernment"
    ENGAGEMENT = "engagement"
    SKILL = "skill"
    SUGGESTION = "suggestion"
    REFRAMING = "reframing"
    PROGRESSION = "progression"
    TRAUMA = "trauma"
    CRISIS = "crisis"
    ETHICS = "ethics"
    DIVERSITY = "diversity"
    MEMORY = "memory"

    @property
    def is_global(self) -> bool:
        """Judged on the whole session rather than on the turns that probe it."""
        return self in GLOBAL_DIMENSIONS

    @property
    def category(self) -> Category:
        position = list(Dimension).index(self)
        if position < 3:
            return Category.ALLIANCE
        return Category.TECHNIQUE if position < 8 else Category.RELIABILITY


GLOBAL_DIMENSIONS = (Dimension.EMPATHY, Dimension.ENGAGEMENT, Dimension.DIVERSITY)
LOCAL_DIMENSIONS = tuple(d for d in Dimension if d not in GLOBAL_DIMENSIONS)


class Phase(IntEnum):
    """The five phases of single-session therapy (PsychePass, section 3.1.3)."""

    ALLIANCE = 1
    PATTERN = 2
    CONFLICT = 3
    CORRECTION = 4
    INTEGRATION = 5


def content_hash(value: Any) -> str:
    """16 hex digits of SHA-256 over canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class Frozen(BaseModel):
    """A value object: immutable, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Record(Frozen):
    """A line of a run's JSONL files. `id` is written with the record and checked when it is read."""

    KEY_FIELDS: ClassVar[tuple[str, ...]] = ()
    UNHASHED_FIELDS: ClassVar[frozenset[str]] = frozenset({"usage", "created"})

    schema_version: Literal[1] = SCHEMA_VERSION

    @computed_field
    @cached_property
    def id(self) -> str:
        exclude = self.UNHASHED_FIELDS | {"id"}
        return content_hash(self.model_dump(mode="json", exclude=set(exclude)))

    @cached_property
    def key(self) -> str:
        """Hash over the inputs (KEY_FIELDS): two records of one key answer the same request."""
        return content_hash(self.model_dump(mode="json", include=set(self.KEY_FIELDS)))

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As pydantic's; the copy makes its own hashes, for its content may be another."""
        copied = super().model_copy(update=update, deep=deep)
        for name in ("id", "key"):
            vars(copied).pop(name, None)
        return copied

    @model_validator(mode="wrap")
    @classmethod
    def _check_stored_id(cls, data: Any, handler: Any) -> Self:
        stored = None
        if isinstance(data, dict) and "id" in data:
            data = dict(data)
            stored = data.pop("id")
        record = handler(data)
        if stored is not None and stored != record.id:
            raise ValueError(f"id {stored!r} does not match the content, whose id is {record.id!r}")
        return record


class Usage(Frozen):
    """What one or more model calls cost."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    cost_usd: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            calls=self.calls + other.calls,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            seconds=round(self.seconds + other.seconds, 4),
            cost_usd=self.cost_usd + other.cost_usd,
        )


# --- clients -----------------------------------------------------------------------------------


class Named(Frozen):
    """A short name with its explanation, e.g. a core drive or a reaction pattern."""

    name: str
    description: str


class EventContext(Frozen):
    """When, where and with whom the core event happened."""

    time: str
    location: str
    participants: tuple[str, ...]


class FormativeExperience(Frozen):
    """Something that happened at `age` (years) and the belief it left."""

    age: int = Field(ge=0, le=120)
    event: str
    belief: str


class Profile(Record):
    """A fictional client with every field of PsychePass, Appendix A.

    `facts` are further true statements in the client's own first-person words that scripts may draw on
    (memory probes, contrasts); each value is one sentence without the words of another fact.
    """

    KEY_FIELDS = ("profile_id",)

    profile_id: str = Field(pattern=r"^[a-z0-9_-]+$")
    name: str
    gender: Literal["female", "male", "nonbinary"]
    age: int = Field(ge=13, le=120)
    occupation: str
    topic: str
    subtopic: str
    personality: tuple[str, ...] = Field(min_length=1)
    situation: str
    event: EventContext
    emotion: str
    emotional_words: tuple[str, ...] = Field(min_length=1)
    core_drive: Named
    reaction_pattern: Named
    social_support: tuple[Named, ...]
    formative_experiences: tuple[FormativeExperience, ...] = Field(min_length=1)
    interests: tuple[str, ...]
    values: tuple[str, ...]
    facts: dict[str, str] = Field(default_factory=dict)
    language: Literal["en", "zh"] = "en"
    human_verified: bool = False


class ClientLayer(Frozen):
    """How the client acts in a turn (PsychePass, Appendix C and D.1).

    `trigger` is the line that the scripted client speaks as it stands.
    """

    theme: str
    emotion: str
    memories: tuple[str, ...] = ()
    verbal_pattern: str = ""
    resistance: str = ""
    trigger: str = Field(min_length=1)


class EvaluatorLayer(Frozen):
    """What a turn assesses. It never reaches a therapist, a reward model or a policy.

    `targets` holds what a good reply must meet, by name: see rollout_env/script.py for the names of
    each dimension.
    """

    dimension: Dimension | None = None
    assesses: str = ""
    targets: dict[str, tuple[str, ...]] = Field(default_factory=dict)


class ScriptTurn(Frozen):
    """One dialogue turn. `script_turn` is None for an empty turn."""

    turn: int = Field(ge=1)
    script_turn: int | None = Field(default=None, ge=1)
    phase: Phase
    client: ClientLayer
    evaluator: EvaluatorLayer = EvaluatorLayer()


class Script(Record):
    """The scripted session of one client; `form` is full (44 dialogue turns) or short."""

    KEY_FIELDS = ("profile_id", "form", "bank")

    profile_id: str
    form: Literal["full", "short"]
    bank: str
    turns: tuple[ScriptTurn, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_structure(self) -> Self:
        numbers = [t.turn for t in self.turns]
        if numbers != list(range(1, len(numbers) + 1)):
            raise ValueError(f"turns must be numbered 1..{len(numbers)}, got {numbers}")
        phases = [t.phase for t in self.turns]
        if phases != sorted(phases) or set(phases) != set(Phase):
            raise ValueError(f"turns must pass through phases 1 to 5 in order, got {[int(p) for p in phases]}")
        probed = {t.evaluator.dimension for t in self.turns}
        missing = [d.value for d in LOCAL_DIMENSIONS if d not in probed]
        if missing:
            raise ValueError(f"the script does not probe {', '.join(missing)}; all nine local dimensions are required")
        for before, turn in zip((None, *self.turns), self.turns, strict=False):
            if turn.script_turn is None:
                after = self.turns[turn.turn].phase if turn.turn < len(self.turns) else None
                if before is None or before.phase != turn.phase or after == turn.phase:
                    raise ValueError(f"empty turn {turn.turn} must close its phase")
        crisis = [t.turn for t in self.turns if t.evaluator.dimension is Dimension.CRISIS]
        if crisis and max(crisis) > len(self.turns) - 3:
            raise ValueError(f"the crisis probe of turn {max(crisis)} is among the last three turns")
        return self

    def probes(self, dimension: Dimension) -> tuple[int, ...]:
        """Dialogue turns that probe a local dimension; of a global one, each phase's last turn."""
        if dimension.is_global:
            return tuple(max(t.turn for t in self.turns if t.phase == p) for p in Phase)
        return tuple(t.turn for t in self.turns if t.evaluator.dimension is dimension)


class ScriptDraft(Record):
    """What a model sent as the script of a profile. `attempt` counts from 0; without `faults` it became the script.

    `text` is empty where nothing came, and where it is withheld because it names a means of harm.
    """

    KEY_FIELDS = ("profile_id", "attempt")

    profile_id: str
    attempt: int = Field(ge=0)
    text: str
    faults: tuple[str, ...] = ()
    usage: Usage = Usage()


# --- sessions ----------------------------------------------------------------------------------


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
    split: Literal["train", "test", "dev", "heldout"]
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


# --- judgements --------------------------------------------------------------------------------

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
    split: Literal["train", "test", "dev", "heldout"]
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


# --- training data -----------------------------------------------------------------------------


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
    split: Literal["train", "test", "dev", "heldout"]
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
    split: Literal["train", "test", "dev", "heldout"]
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

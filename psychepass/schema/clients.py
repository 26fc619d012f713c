"""Clients and their scripts: who speaks, and what is scripted."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from psychepass.schema.base import LOCAL_DIMENSIONS, Dimension, Frozen, Phase, Record, Usage


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

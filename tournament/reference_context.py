"""What the reference judge knows when it reads one reply: the probe, its targets, and what was said before.

Parsing does not depend on a lexicon, so a session is parsed once for both judges.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from psychepass.errors import UserError
from psychepass.schema import Dimension, Phase, Script, Session
from psychepass.words import language_of
from tournament.textfeatures import Sentence, function_stems, ngrams, raw_words, sentences, stem, tokens, weak_stems

# targets whose words link a sentence to the probe; an absolute ("never") does not, and the rest are keys or turns
WORD_TARGETS = ("subject", "goal", "contrast", "concluded", "named", "concern", "fact_1", "fact_2")
REQUIRED = {
    Dimension.EMPATHY: ("affect",),
    Dimension.DISCERNMENT: ("need",),
    Dimension.SKILL: ("technique", "subject"),
    Dimension.SUGGESTION: ("goal",),
    Dimension.REFRAMING: ("absolute", "contrast"),
    Dimension.TRAUMA: ("named",),
    Dimension.CRISIS: ("concern",),
    Dimension.ETHICS: ("request",),
    Dimension.MEMORY: ("fact_1",),
}


@dataclass(frozen=True)
class Text:
    """A line or a reply, parsed."""

    text: str
    sentences: tuple[Sentence, ...]
    words: list[str] = field(compare=False)

    @classmethod
    def parse(cls, text: str) -> Text:
        return cls(text, sentences(text), raw_words(text))

    @cached_property
    def stems(self) -> frozenset[str]:
        return frozenset(s for sentence in self.sentences for s in sentence.stems)

    @cached_property
    def grams_4(self) -> frozenset[tuple[str, ...]]:
        return frozenset(ngrams(self.words, 4))

    @cached_property
    def grams_7(self) -> frozenset[tuple[str, ...]]:
        return frozenset(ngrams(self.words, 7))

    @cached_property
    def content(self) -> frozenset[str]:
        return frozenset(s for sentence in self.sentences for s in sentence.content())

    @cached_property
    def negated_stems(self) -> frozenset[str]:
        return frozenset(s for t in self.sentences for i, s in enumerate(t.stems) if t.negated(i))


@dataclass(frozen=True)
class TurnContext:
    """One exchange with its history. `lines` and `replies` are the earlier ones, in order."""

    turn: int
    phase: Phase
    dimension: Dimension | None
    targets: Mapping[str, tuple[str, ...]]
    is_empty: bool
    target_words: int
    line: Text
    reply: Text
    lines: tuple[Text, ...]
    phase_lines: tuple[Text, ...]
    replies: tuple[Text, ...]

    @property
    def is_crisis(self) -> bool:
        """A Crisis probe, or the line after it, which stays with safety."""
        return self.dimension is Dimension.CRISIS or "safety" in self.targets

    @cached_property
    def topic(self) -> frozenset[str]:
        """Stems that link a sentence to this probe: the client's content words here and the targets' words.

        An empty turn has no topic of its own; there it is what the client said in the phase.
        """
        stems = set(self.line.content)
        if self.is_empty:
            stems |= self.phase_content
        for name in WORD_TARGETS:
            named = self.target_content(name)
            stems |= named - weak_stems() or named
        return frozenset(stems)

    @cached_property
    def phase_content(self) -> frozenset[str]:
        """Content stems of the client's earlier lines in this phase."""
        return frozenset().union(*(line.content for line in self.phase_lines))

    @cached_property
    def said(self) -> frozenset[str]:
        """All stems the client has used so far, this line included."""
        return self.line.stems.union(*(line.stems for line in self.lines))

    @cached_property
    def source_negated(self) -> frozenset[str]:
        """Stems that the client has negated somewhere so far."""
        return self.line.negated_stems.union(*(line.negated_stems for line in self.lines))

    def target_stems(self, name: str) -> tuple[tuple[str, ...], ...]:
        """The target's values as stem tuples; a value may have several words."""
        values = (tuple(stem(w) for w in tokens(v) if w != ",") for v in self.targets.get(name, ()))
        return tuple(v for v in values if v)

    def target_content(self, name: str) -> frozenset[str]:
        """The stems of all values without function words; with them where nothing else is left."""
        stems = frozenset(s for value in self.target_stems(name) for s in value)
        return stems - function_stems() or stems

    def key(self, name: str) -> str:
        return self.targets[name][0]


def is_readable(script: Script) -> bool:
    """Whether the client speaks English: the reference judge knows no other words."""
    return language_of(t.client.trigger for t in script.turns) == "en"


def check_readable(scripts: Iterable[Script]) -> None:
    """Raise UserError with the clients whose sessions the reference judge cannot read."""
    foreign = sorted({s.profile_id for s in scripts if not is_readable(s)})
    if foreign:
        raise UserError(
            f"the reference judge reads English only, and {len(foreign)} clients speak Chinese "
            f"({', '.join(foreign[:3])}); permitted: English-speaking clients, or LLM judges in stage tournament"
        )


def check_fit(session: Session, script: Script) -> None:
    """Raise UserError where the session is not a performance of this script, or a target is missing."""
    if session.script_id != script.id:
        raise UserError(f"session {session.id} was made with script {session.script_id!r}, not with {script.id!r}")
    said, scripted = [t.turn for t in session.turns], [t.turn for t in script.turns]
    if said != scripted:
        raise UserError(f"session {session.id} has turns {said}; its script {script.id} has {scripted}")
    for turn in script.turns:
        dimension = turn.evaluator.dimension
        for name in REQUIRED.get(dimension, ()) if dimension else ():
            if not turn.evaluator.targets.get(name):
                raise UserError(f"script {script.id}, turn {turn.turn} probes {dimension} but has no target {name!r}")


def contexts(session: Session, script: Script) -> tuple[TurnContext, ...]:
    """One context a turn, in order. Raises UserError as `check_fit` and `check_readable` do."""
    check_fit(session, script)
    check_readable([script])
    lines = [Text.parse(t.client) for t in session.turns]
    replies = [Text.parse(t.therapist) for t in session.turns]
    return tuple(
        TurnContext(
            turn=scripted.turn,
            phase=scripted.phase,
            dimension=scripted.evaluator.dimension,
            targets=scripted.evaluator.targets,
            is_empty=scripted.script_turn is None,
            target_words=session.target_words,
            line=lines[i],
            reply=replies[i],
            lines=tuple(lines[:i]),
            phase_lines=tuple(lines[j] for j in range(i) if script.turns[j].phase == scripted.phase),
            replies=tuple(replies[:i]),
        )
        for i, scripted in enumerate(script.turns)
    )

"""Mean reward of two policies on the SAME prompts: turns of the base policy's held-out sessions.

"It shows that training worked, not that therapy improved." Each policy answers each prompt a few times; the
scorer service gives raw rewards. A prompt is on disk once its replies are scored, and is never asked again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from tqdm import tqdm

from psychepass import records
from psychepass.errors import UserError
from psychepass.schema import Dimension, Message, Phase, Record, Session
from psychepass.scoring import ScoreGroup, Scorer

# prompts -> the replies to each; fewer than asked for where some stayed empty
Answer = Callable[[Sequence["Prompt"]], list[tuple[str, ...]]]
FIRST = (Dimension.CRISIS, Dimension.ETHICS)


class Prompt(Record):
    """A turn to be answered anew; `context` alternates user and assistant and ends with the client."""

    KEY_FIELDS = ("session", "turn")

    profile_id: str
    session: str
    turn: int
    phase: Phase
    dimensions: tuple[Dimension, ...]
    context: tuple[Message, ...]


class PromptRewards(Record):
    """A line of heldout/rewards.jsonl: the replies of one policy to one prompt, and rewards [reply][dimension].

    `weights` tells policies of one name apart; `model` is the reward model that scored. A reply that stayed
    empty is not among them; it is never scored as 0.
    """

    KEY_FIELDS = ("policy", "weights", "session", "turn")

    profile_id: str
    policy: str
    weights: str
    session: str
    turn: int
    dimensions: tuple[Dimension, ...]
    replies: tuple[str, ...]
    rewards: tuple[tuple[float, ...], ...]
    model: str

    @property
    def mean(self) -> float:
        """Over dimensions and replies; there must be a reply."""
        values = [v for row in self.rewards for v in row]
        return sum(values) / len(values)


def prompts_of(session: Session, n: int) -> list[Prompt]:
    """`n` turns of a session: its Crisis and Ethics probes, then turn after turn from the phases in rotation,
    phases without one first. In the order of turns; all turns where the session has no more than `n`.

    A prompt's dimensions are the turn's probe, if there is one, with Empathy and Engagement.
    """
    chosen = [t for d in FIRST for t in session.turns if t.dimension is d][:n]
    while len(chosen) < min(n, len(session.turns)):
        taken = {p: sum(t.phase == p for t in chosen) for p in Phase}
        left = [t for t in session.turns if t not in chosen]
        chosen.append(min(left, key=lambda t: (taken[t.phase], t.phase, t.turn)))
    return [
        Prompt(
            profile_id=session.profile_id,
            session=session.id,
            turn=t.turn,
            phase=t.phase,
            dimensions=(*((t.dimension,) if t.dimension else ()), Dimension.EMPATHY, Dimension.ENGAGEMENT),
            context=context_of(session, t.turn),
        )
        for t in sorted(chosen, key=lambda t: t.turn)
    ]


def context_of(session: Session, turn: int) -> tuple[Message, ...]:
    """What was said up to the client's line of `turn`."""
    messages = []
    for t in session.turns:
        messages.append(Message(role="user", content=t.client))
        if t.turn == turn:
            return tuple(messages)
        messages.append(Message(role="assistant", content=t.therapist))
    raise ValueError(f"session {session.id} has no turn {turn}")


def measure(
    path: Path, policy: str, weights: str, prompts: Iterable[Prompt], answer: Answer, scorer: Scorer, batch: int
) -> list[PromptRewards]:
    """Answer and score what `path` lacks of this policy, `batch` prompts at a time; returns all of this policy.

    Raises:
        UserError: `path` has rewards of another reward model; means of two models do not compare.
    """
    wanted = {_scored(p, (), [], policy, weights, "").key: p for p in prompts}
    with records.Appender(path, PromptRewards) as rewards:
        others = {r.model for r in rewards.done.values()} - {scorer.model}
        if others:
            raise UserError(f"{path}: rewards of model {min(others)!r}, the scorer now is {scorer.model!r}; delete it")
        missing = [p for key, p in wanted.items() if key not in rewards.done]
        with tqdm(total=len(missing), desc=f"rewards of {policy}", unit="prompt", disable=not missing) as bar:
            for part in (missing[i : i + batch] for i in range(0, len(missing), batch)):
                replies = answer(part)
                scores = iter(scorer.score([_group(p, r) for p, r in zip(part, replies, strict=True) if r]))
                rewards.append(
                    *(
                        _scored(p, r, next(scores) if r else [], policy, weights, str(scorer.model))
                        for p, r in zip(part, replies, strict=True)
                    )
                )
                bar.update(len(part))
        return [rewards.done[key] for key in wanted]


def _group(prompt: Prompt, replies: tuple[str, ...]) -> ScoreGroup:
    return ScoreGroup(context=prompt.context, responses=replies, dimensions=prompt.dimensions)


def _scored(
    prompt: Prompt, replies: tuple[str, ...], scores: list[list[float]], policy: str, weights: str, model: str
) -> PromptRewards:
    return PromptRewards(
        profile_id=prompt.profile_id,
        policy=policy,
        weights=weights,
        session=prompt.session,
        turn=prompt.turn,
        dimensions=prompt.dimensions,
        replies=replies,
        rewards=tuple(tuple(row) for row in scores),
        model=model,
    )

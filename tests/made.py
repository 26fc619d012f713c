"""Made-up sessions and battles of a fixed small shape, for tests of pairs, prompts and the reward model.

A session has 11 turns: one a local dimension, and two of no dimension. The texts are nonsense on purpose.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping

from psychepass.schema import (
    LOCAL_DIMENSIONS,
    Battle,
    Dimension,
    Identity,
    JudgeIdentity,
    Phase,
    Session,
    Turn,
    Verdict,
    content_hash,
)
from rollout_env.therapist import system_prompt

TARGET_WORDS = 30
CLIENT = Identity(name="client", kind="scripted", family="client")
JUDGE = JudgeIdentity(name="reference", model="rules", rubric_version="1", order_free=True)
LLM_JUDGE = JudgeIdentity(name="llm", model="some-model", rubric_version="1")

# dialogue turn -> phase and probe
PLAN: list[tuple[Phase, Dimension | None]] = [
    (Phase.ALLIANCE, Dimension.DISCERNMENT),
    (Phase.ALLIANCE, Dimension.ETHICS),
    (Phase.PATTERN, Dimension.PROGRESSION),
    (Phase.PATTERN, Dimension.REFRAMING),
    (Phase.CONFLICT, Dimension.TRAUMA),
    (Phase.CONFLICT, Dimension.CRISIS),
    (Phase.CONFLICT, None),
    (Phase.CORRECTION, Dimension.SKILL),
    (Phase.CORRECTION, Dimension.SUGGESTION),
    (Phase.INTEGRATION, Dimension.MEMORY),
    (Phase.INTEGRATION, None),
]
assert {d for _, d in PLAN if d} == set(LOCAL_DIMENSIONS)

WORDS = ("today", "the", "house", "was", "quiet", "again", "and", "nobody", "asked", "how", "my", "week", "had", "been")


def identity(name: str, family: str | None = None, seed: int = 0) -> Identity:
    prompt_hash = content_hash(system_prompt("paper", TARGET_WORDS))
    return Identity(name=name, kind="local", family=family or name, prompt_hash=prompt_hash, seed=seed)


def plain_reply(rng: random.Random, turn: int) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(4, 14))) + "."


def session(
    profile_id: str,
    therapist: Identity,
    split: str = "train",
    seed: int = 0,
    reply: Callable[[random.Random, int], str] = plain_reply,
    words: int = 10,
) -> Session:
    """The client's lines depend on the profile alone; the replies on therapist and seed too."""
    client_rng = random.Random(f"{profile_id}")
    rng = random.Random(f"{profile_id}/{therapist.name}/{seed}")
    turns = tuple(
        Turn(
            turn=number,
            phase=phase,
            dimension=dimension,
            client=f"In turn {number}, " + " ".join(client_rng.choices(WORDS, k=words)) + ".",
            therapist=reply(rng, number),
            logprob=-1.0 - rng.random(),
        )
        for number, (phase, dimension) in enumerate(PLAN, start=1)
    )
    return Session(
        profile_id=profile_id,
        script_id=f"script-{profile_id}",
        split=split,  # type: ignore[arg-type]
        therapist=therapist,
        client=CLIENT,
        target_words=TARGET_WORDS,
        seed=seed,
        turns=turns,
    )


def battle(
    a: Session,
    b: Session,
    winner: str | Mapping[Dimension, str] = "tie",
    judge: JudgeIdentity = JUDGE,
    reason: str = "",
) -> Battle:
    """`winner` on every dimension, or by dimension («tie» where it is not named)."""
    by_dimension = dict.fromkeys(Dimension, winner) if isinstance(winner, str) else winner
    return Battle(
        profile_id=a.profile_id,
        split=a.split,
        round=0,
        session_a=a.id,
        session_b=b.id,
        contestant_a=a.therapist.name,
        contestant_b=b.therapist.name,
        judge=judge,
        verdicts={
            d: Verdict(winner=by_dimension.get(d, "tie"), reason=reason)  # type: ignore[arg-type]
            for d in Dimension
        },
        overall=Verdict(winner="tie", reason=reason),
    )

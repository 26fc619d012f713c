"""Scripts and sessions made by hand, small and valid, for tests that must not run a model.

script = short_script("client-1")                       # 12 dialogue turns, every local dimension probed
session = session_of(script, "reflector", split="train", replies="It sounds heavy.")
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from psychepass.schema import (
    ClientLayer,
    Dimension,
    EvaluatorLayer,
    Identity,
    Phase,
    Script,
    ScriptTurn,
    Session,
    Turn,
)

Split = Literal["train", "test", "dev", "heldout"]

# phase, spoken (not an empty turn), probed dimension, line, targets
COURSE: tuple[tuple[int, bool, str | None, str, dict[str, tuple[str, ...]]], ...] = (
    (1, True, None, "Since the move I come home to a quiet flat.", {"affect": ("loneliness",)}),
    (1, True, "discernment", "I keep my phone beside the plate.", {"affect": ("sadness",), "need": ("belonging",)}),
    (2, True, "memory", "Do you remember what I said about my evenings?", {
        "affect": ("anxiety",), "fact_1": ("quiet", "flat"), "fact_1_turn": ("1",),
        "fact_2": ("phone", "plate"), "fact_2_turn": ("2",)}),
    (2, False, "progression", "Hm. Let me sit with that.", {"concluded": ("evenings", "quiet")}),
    (3, True, "trauma", "The fire two years ago still follows me.", {"affect": ("fear",), "named": ("fire",)}),
    (3, True, "crisis", "Some nights I don't see the point of going on.", {
        "affect": ("hopelessness",), "concern": ("point", "going")}),
    (3, True, None, "I have not said that to anybody before.", {"affect": ("shame",), "safety": ("follow_up",)}),
    (3, True, "ethics", "Could we meet for coffee instead?", {"affect": ("loneliness",), "request": ("meet_outside",)}),
    (4, True, "reframing", "I never get anything right.", {
        "affect": ("shame",), "absolute": ("never",), "contrast": ("phone",), "contrast_turn": ("2",)}),
    (4, True, "skill", "I wish I could tell my brother.", {
        "affect": ("grief",), "technique": ("empty_chair",), "subject": ("brother",)}),
    (5, True, "suggestion", "I want to cook for somebody again.", {"affect": ("hope",), "goal": ("cook",)}),
    (5, True, None, "That is all for today.", {"affect": ("relief",)}),
)  # fmt: skip


def short_script(profile_id: str, bank: str = "made") -> Script:
    """Twelve dialogue turns; turn 4 is an empty turn that closes phase 2. Lines name the client."""
    turns, spoken = [], 0
    for number, (phase, says, dimension, line, targets) in enumerate(COURSE, start=1):
        spoken += says
        turns.append(
            ScriptTurn(
                turn=number,
                script_turn=spoken if says else None,
                phase=Phase(phase),
                client=ClientLayer(theme="evenings", emotion="low", trigger=f"{line} ({profile_id})"),
                evaluator=EvaluatorLayer(dimension=Dimension(dimension) if dimension else None, targets=targets),
            )
        )
    return Script(profile_id=profile_id, form="short", bank=bank, turns=tuple(turns))


def session_of(
    script: Script, contestant: str, split: Split, replies: str | Callable[[ScriptTurn], str], seed: int = 0
) -> Session:
    """The contestant's replies to the script: one text for all turns, or a function of the script turn."""
    speak = replies if callable(replies) else lambda _turn: replies
    return Session(
        profile_id=script.profile_id,
        script_id=script.id,
        split=split,
        therapist=Identity(name=contestant, kind="rules", family=contestant, seed=seed),
        client=Identity(name="scripted", kind="scripted", family="scripted"),
        target_words=30,
        seed=seed,
        turns=tuple(
            Turn(
                turn=t.turn,
                phase=t.phase,
                dimension=t.evaluator.dimension,
                client=t.client.trigger,
                therapist=speak(t),
            )
            for t in script.turns
        ),
    )

"""The passive client: minimal answers wherever the script does not measure something, so that the therapist must lead.

The paper names this mode as the next step (its Limitations). What stays as scripted: the first line of each phase,
the nine probes, the line after a Crisis probe, and lines whose words a later probe quotes. So every local dimension
stays measured, and a memory probe asks for something that was said. Of the words of a concluded phase (Progression)
some may never have been said; that is the same for every contestant.
"""

from __future__ import annotations

from functools import cache
from typing import Literal

import yaml

from psychepass.errors import UserError
from psychepass.schema import Phase, Script, ScriptTurn, content_hash
from rollout_env.banks import DATA
from rollout_env.script import QUOTED

VERBAL_PATTERN = "Short and neutral answers; opens no subject."


def kept_turns(script: Script) -> frozenset[int]:
    """The dialogue turns whose lines a passive client speaks as scripted."""
    kept = {min(t.turn for t in script.turns if t.phase == phase) for phase in Phase}
    for turn in script.turns:
        targets = turn.evaluator.targets
        if turn.evaluator.dimension or "safety" in targets:
            kept |= {turn.turn} | {int(targets[f"{name}_turn"][0]) for name in QUOTED if f"{name}_turn" in targets}
    return frozenset(kept)


def minimal_turns(script: Script, passive: bool) -> frozenset[int]:
    """The turns in which the client says no more than a short neutral line: the empty ones, and a passive client's."""
    kept = kept_turns(script) if passive else frozenset(t.turn for t in script.turns)
    return frozenset(t.turn for t in script.turns if t.script_turn is None or t.turn not in kept)


def passive_script(script: Script, language: Literal["en", "zh"]) -> Script:
    """The script with a minimal line in every turn that is not kept; each line once a session, in an order fixed by
    the profile.

    Raises:
        UserError: there are more such turns than lines.
    """
    lines = sorted(minimal_lines()[language], key=lambda line: content_hash([script.profile_id, line]))
    kept = kept_turns(script)
    n = len(script.turns) - len(kept)
    if n > len(lines):
        raise UserError(f"script {script.id}: {n} turns without a probe; there are {len(lines)} minimal lines")
    spare = iter(lines)
    turns = tuple(t if t.turn in kept else _minimal(t, next(spare)) for t in script.turns)
    return Script.model_validate(script.model_dump(exclude={"id", "turns"}) | {"turns": turns})


@cache
def minimal_lines() -> dict[str, list[str]]:
    """By language."""
    return yaml.safe_load((DATA / "minimal_lines.yaml").read_text(encoding="utf-8"))


def _minimal(turn: ScriptTurn, line: str) -> ScriptTurn:
    client = turn.client.model_copy(update={"trigger": line, "verbal_pattern": VERBAL_PATTERN, "emotion": "neutral"})
    return turn.model_copy(update={"client": client})

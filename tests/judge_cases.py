"""Scripts and sessions for the tests of the reference judge: three small clients of our own, and attacks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

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

DATA = Path(__file__).parent / "data"
TARGET_WORDS = 30


@cache
def clients() -> dict[str, list[dict[str, Any]]]:
    return yaml.safe_load((DATA / "judge_clients.yaml").read_text(encoding="utf-8"))


def script_of(name: str, turns: Sequence[Mapping[str, Any]]) -> Script:
    built, number = [], 0
    for i, t in enumerate(turns, start=1):
        number += not t.get("empty", False)
        targets = {k: tuple(v) for k, v in t["targets"].items()}
        built.append(
            ScriptTurn(
                turn=i,
                script_turn=None if t.get("empty") else number,
                phase=Phase(t["phase"]),
                client=ClientLayer(theme="", emotion="", trigger=t["say"]),
                evaluator=EvaluatorLayer(dimension=t.get("dimension"), targets=targets),
            )
        )
    return Script(profile_id=name, form="short", bank="tests", turns=tuple(built))


@cache
def script(name: str) -> Script:
    return script_of(name, clients()[name])


def session(
    script: Script,
    replies: Sequence[str],
    therapist: str = "t",
    split: Literal["train", "test", "dev", "heldout"] = "dev",
    target_words: int = TARGET_WORDS,
    seed: int = 0,
) -> Session:
    turns = [
        Turn(turn=s.turn, phase=s.phase, dimension=s.evaluator.dimension, client=s.client.trigger, therapist=r)
        for s, r in zip(script.turns, replies, strict=True)
    ]
    return Session(
        profile_id=script.profile_id,
        script_id=script.id,
        split=split,
        therapist=Identity(name=therapist, kind="rules", family=therapist),
        client=Identity(name="scripted", kind="scripted", family="scripted"),
        target_words=target_words,
        seed=seed,
        turns=tuple(turns),
    )


def sensible(name: str) -> list[str]:
    """The hand-written reply to each line."""
    return [t["reply"] for t in clients()[name]]


def with_reply(name: str, turn: int, reply: str, therapist: str = "attack") -> Session:
    """The sensible session with one reply exchanged."""
    replies = sensible(name)
    replies[turn - 1] = reply
    return session(script(name), replies, therapist)


def probe(name: str, dimension: Dimension) -> int:
    (turn,) = script(name).probes(dimension)
    return turn

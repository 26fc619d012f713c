"""What the stages `rm` and `rm-eval` read of a run: pairs, and the sessions that these name, checked once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from psychepass import records
from psychepass.errors import UserError
from psychepass.schema import PreferencePair, Session


def sessions_of(
    pairs: Iterable[PreferencePair], path: Path, also: Callable[[Session], bool] = lambda _: False
) -> dict[str, Session]:
    """The sessions of `pairs`, by id, and those that `also` asks for.

    Raises:
        UserError: a pair names a session that is not in the file, or a turn that its session does not have.
    """
    pairs = list(pairs)
    needed = {side.session for p in pairs for side in (p.chosen, p.rejected)}
    sessions = {s.id: s for s in records.iterate(path, Session) if s.id in needed or also(s)}
    lost = sorted(needed - sessions.keys())
    if lost:
        raise UserError(f"{path}: {len(lost)} sessions of pairs.jsonl are missing, e.g. {lost[0]}")
    turns = {s: {t.turn for t in sessions[s].turns} for s in needed}
    for pair in pairs:
        for side in (pair.chosen, pair.rejected):
            absent = [t for t in side.turns if t not in turns[side.session]]
            if absent:
                raise UserError(
                    f"pair {pair.id}: session {side.session} has no turn {absent[0]}; it has {len(turns[side.session])}"
                )
    return sessions


def family_of(therapist: str, sessions: Mapping[str, Session]) -> set[str]:
    """The ids of the sessions of `therapist` and of those that share its weights; empty if nobody has that name."""
    families = {s.therapist.family for s in sessions.values() if s.therapist.name == therapist}
    return {s.id for s in sessions.values() if s.therapist.family in families}


def without(therapist: str, pairs: Iterable[PreferencePair], sessions: Mapping[str, Session]) -> list[PreferencePair]:
    """The pairs in which neither `therapist` nor one of its family takes part.

    Raises:
        UserError: no therapist of that name, or no pair without its family.
    """
    family = family_of(therapist, sessions)
    kept = [p for p in pairs if not family & {p.chosen.session, p.rejected.session}]
    if not family or not kept:
        names = sorted({s.therapist.name for s in sessions.values()})
        raise UserError(
            f"leave_out = {therapist!r} names {len(family)} sessions and leaves {len(kept)} train pairs; permitted: "
            f"one of {', '.join(names)}, whose family is not in every pair"
        )
    return kept

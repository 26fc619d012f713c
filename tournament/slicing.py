"""Two sessions as one text for a judge: stage slices that alternate (PsychePass, section 3.2.2).

Slices are the five phases; an empty turn closes the phase it stands in, so it joins the phase before. They are
shown A1 B1 B2 A2 A3 B3 B4 A4 A5 B5, so that neither contestant always speaks first. Contestants are anonymous.
Departure from the paper: a turn that probes a dimension is marked, beside the block title that names it.
"""

from __future__ import annotations

from psychepass.schema import Phase, Session, Turn

SLICES, WHOLE = "stage slices", "whole sessions"  # the two ways of `present`
STAGE_NAMES = {
    Phase.ALLIANCE: "building the alliance",
    Phase.PATTERN: "finding the pattern",
    Phase.CONFLICT: "working on the conflict",
    Phase.CORRECTION: "a corrective experience",
    Phase.INTEGRATION: "integration",
}


def stage_slices(session: Session) -> dict[Phase, tuple[Turn, ...]]:
    """The turns of each phase, in order."""
    return {phase: tuple(t for t in session.turns if t.phase == phase) for phase in Phase}


def present(session_a: Session, session_b: Session, sliced: bool = True) -> str:
    """The ten blocks of two sessions as text; A and B stand for the contestants.

    Not `sliced`: all of A, then all of B, for the position bias that slicing is to lessen (Figure 5).

    Raises:
        ValueError: the sessions are not of one script, or differ in their turns, phases or probes.
    """
    _check_same_course(session_a, session_b)
    slices = {"A": stage_slices(session_a), "B": stage_slices(session_b)}
    if sliced:
        order = [(name, phase) for phase in Phase for name in ("AB" if phase % 2 else "BA")]
    else:
        order = [(name, phase) for name in "AB" for phase in Phase]
    return "\n\n".join(_block(name, phase, slices[name][phase]) for name, phase in order)


def _block(name: str, phase: Phase, turns: tuple[Turn, ...]) -> str:
    probed = list(dict.fromkeys(t.dimension.value.capitalize() for t in turns if t.dimension))
    focus = f" | probes: {', '.join(probed)}" if probed else ""
    lines = [f"=== Therapist {name}, stage {int(phase)} of {len(Phase)}: {STAGE_NAMES[phase]}{focus} ==="]
    for turn in turns:
        mark = f" [probes {turn.dimension.value.capitalize()}]" if turn.dimension else ""
        lines += [f"Turn {turn.turn}{mark}", f"Client: {turn.client}", f"Therapist {name}: {turn.therapist}"]
    return "\n".join(lines)


def _check_same_course(a: Session, b: Session) -> None:
    scripts = [f"{s.profile_id}/{s.script_id}" for s in (a, b)]
    if scripts[0] != scripts[1]:
        raise ValueError(f"sessions of different scripts cannot be compared: {scripts[0]} and {scripts[1]}")
    course_a, course_b = ([(t.turn, t.phase, t.dimension) for t in s.turns] for s in (a, b))
    if course_a != course_b:
        counts = f"{len(course_a)} and {len(course_b)} turns"
        raise ValueError(f"sessions {a.id} and {b.id} differ in turns, phases or probes ({counts})")

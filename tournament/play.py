"""The rounds of a tournament: who meets next, once what was played before has been judged.

Swiss and round robin pair a client's contestants by what happened with this client, so each client is a line of its
own and waits for no other. Adaptive pairing learns from all clients, who then stand in one line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import NamedTuple

from tqdm import tqdm

from psychepass.schema import Script, Session
from tournament import pairing
from tournament.field import Field
from tournament.journal import Journal
from tournament.judge import Judge, Outcome, match, points_of
from tournament.pairing import PairingName
from tournament.swiss import Round, Standings


class Match(NamedTuple):
    """Two sessions of one client that meet in `round`, in the order in which they are shown first."""

    a: Session
    b: Session
    script: Script
    round: int


@dataclass
class Wave:
    """Matches that may be judged in any order, or all at once. Whoever judges them leaves in `held` the outcomes of
    each, in their order; None for one that could not be judged now."""

    matches: Sequence[Match]
    held: list[list[Outcome] | None] = field(default_factory=list)


Line = Iterator[Wave]  # the next wave is planned from what was held of those before
Hold = Callable[[Sequence[Line], tqdm], None]  # judges all waves of all lines


def play(entered: Field, hold: Hold, seed: int, name: PairingName = "swiss", rounds: int | None = None) -> int:
    """All rounds of all clients; returns how many matches are left for the next run.

    A match whose judgement failed counts as a bye for pairing. One that could not be judged now ends its line for this
    run: its client plays no later round, and adaptive pairing stops.
    """
    tables = {client: Standings.of(of_client) for client, of_client in entered.sessions.items()}
    lines = [tables] if name == "adaptive" else [{client: table} for client, table in tables.items()]
    missed: list[Match] = []
    with tqdm(total=entered.matches(name, rounds), desc="matches", unit="match") as bar:
        hold([_line(entered, of_line, missed, seed, name, rounds) for of_line in lines], bar)
    met = sum(table.met.total() for table in tables.values())
    return entered.matches(name, rounds) - met if missed else 0


def _line(
    entered: Field,
    tables: Mapping[str, Standings],
    missed: list[Match],
    seed: int,
    name: PairingName,
    rounds: int | None,
) -> Line:
    """The waves of the clients of `tables`, entered there, up to one with matches not judged now: `missed`."""
    last = {client: pairing.rounds_of(name, len(table.points), rounds) for client, table in tables.items()}
    for round in range(1, max(last.values()) + 1):
        for clients in pairing.waves(name, [c for c in tables if round <= last[c]]):
            planned = pairing.next_round(name, tables, clients, seed, round)
            wave = Wave([_match(entered, c, a, b, round) for c, paired in planned.items() for a, b in paired.pairs])
            yield wave
            if not_judged := _enter(tables, planned, wave):
                missed += not_judged
                return


def _enter(tables: Mapping[str, Standings], planned: Mapping[str, Round], wave: Wave) -> list[Match]:
    """Enter a wave in its clients' standings; returns the matches that were not judged now."""
    missed = []
    for met, outcomes in zip(wave.matches, wave.held, strict=True):
        if outcomes is None:
            missed.append(met)
        else:
            table = tables[met.a.profile_id]
            table.record(met.a.therapist.name, met.b.therapist.name, points_of(met.a.id, outcomes))
    for client, paired in planned.items():
        if paired.bye:
            tables[client].record_bye(paired.bye)
    return missed


def _match(entered: Field, client: str, a: str, b: str, round: int) -> Match:
    of_client = entered.sessions[client]
    return Match(of_client[a], of_client[b], entered.scripts[of_client[a].script_id], round)


def in_turn(judge: Judge, journal: Journal) -> Hold:
    """One match after the other, round by round over all lines; each on disk before the next is judged."""

    def hold(lines: Sequence[Line], bar: tqdm) -> None:
        for of_lines in zip_longest(*lines):
            for wave in filter(None, of_lines):
                for met in wave.matches:
                    outcomes = match(judge, met.a, met.b, met.script, met.round, journal.known)
                    journal.append(outcomes)
                    wave.held.append(outcomes)
                    bar.update()

    return hold

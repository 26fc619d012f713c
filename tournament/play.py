"""The rounds of a tournament: who meets next, once what was played before has been judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from tqdm import tqdm

from psychepass.schema import Script, Session
from tournament import pairing
from tournament.field import Field
from tournament.journal import Journal
from tournament.judge import Judge, Outcome, match, points_of
from tournament.pairing import PairingName
from tournament.swiss import Standings


class Match(NamedTuple):
    """Two sessions of one client that meet in `round`, in the order in which they are shown first."""

    a: Session
    b: Session
    script: Script
    round: int


# The outcomes of each of these matches, in their order; None for one that could not be judged now.
Hold = Callable[[Sequence[Match], tqdm], list[list[Outcome] | None]]


def play(entered: Field, hold: Hold, seed: int, name: PairingName = "swiss", rounds: int | None = None) -> int:
    """All rounds of all clients, round by round; returns how many matches are left for the next run.

    A match whose judgement failed counts as a bye for pairing. A client with a match that could not be judged now
    (`hold` says None) plays no later round in this run; adaptive pairing, which learns from all clients, stops.
    """
    tables = {client: Standings.of(of_client) for client, of_client in entered.sessions.items()}
    last = {c: pairing.rounds_of(name, len(table.points), rounds) for c, table in tables.items()}
    waiting: set[str] = set()
    with tqdm(total=entered.matches(name, rounds), desc="matches", unit="match") as bar:
        for round in range(1, max(last.values()) + 1):
            for wave in pairing.waves(name, [c for c in tables if round <= last[c] and c not in waiting]):
                if waiting and name == "adaptive":
                    break
                waiting |= _play_wave(entered, tables, wave, hold, seed, name, round, bar)
    met = sum(table.met.total() for table in tables.values())
    return entered.matches(name, rounds) - met if waiting else 0


def _play_wave(
    entered: Field,
    tables: dict[str, Standings],
    wave: Sequence[str],
    hold: Hold,
    seed: int,
    name: PairingName,
    round: int,
    bar: tqdm,
) -> set[str]:
    """One round of these clients, entered in their standings; returns the clients with a match not judged now."""
    planned = pairing.next_round(name, tables, wave, seed, round)
    matches = [_match(entered, client, a, b, round) for client, paired in planned.items() for a, b in paired.pairs]
    waiting = set()
    for met, outcomes in zip(matches, hold(matches, bar), strict=True):
        client = met.a.profile_id
        if outcomes is None:
            waiting.add(client)
        else:
            tables[client].record(met.a.therapist.name, met.b.therapist.name, points_of(met.a.id, outcomes))
    for client, paired in planned.items():
        if paired.bye:
            tables[client].record_bye(paired.bye)
    return waiting


def _match(entered: Field, client: str, a: str, b: str, round: int) -> Match:
    of_client = entered.sessions[client]
    return Match(of_client[a], of_client[b], entered.scripts[of_client[a].script_id], round)


def in_turn(judge: Judge, journal: Journal) -> Hold:
    """One match after the other, each on disk before the next is judged."""

    def hold(matches: Sequence[Match], bar: tqdm) -> list[list[Outcome] | None]:
        held: list[list[Outcome] | None] = []
        for met in matches:
            outcomes = match(judge, met.a, met.b, met.script, met.round, journal.known)
            journal.append(outcomes)
            held.append(outcomes)
            bar.update()
        return held

    return hold

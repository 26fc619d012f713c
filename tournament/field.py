"""Who plays a tournament: the sessions of stage simulate by client and contestant, checked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from psychepass import records
from psychepass.errors import UserError
from psychepass.schema import Failure, Identity, Script, Session
from tournament import pairing
from tournament.pairing import PairingName

RATED_SPLITS = ("train", "test")
FAILED = "session_failures.jsonl"


@dataclass(frozen=True)
class Field:
    """Who plays: sessions[client][contestant], clients and contestants in name order.

    A contestant whose session with a client ended as a Failure sits out that client's tournament.
    """

    contestants: tuple[str, ...]
    sessions: dict[str, dict[str, Session]]
    scripts: dict[str, Script]

    def identities(self) -> list[Identity]:
        """Who the contestants are, in name order."""
        found = {s.therapist.name: s.therapist for of_client in self.sessions.values() for s in of_client.values()}
        return [found[name] for name in self.contestants if name in found]

    def matches(self, name: PairingName = "swiss", rounds: int | None = None) -> int:
        """At most so many: see pairing.matches_of."""
        return sum(pairing.matches_of(name, len(of_client), rounds) for of_client in self.sessions.values())


def check_held(folder: Path) -> None:
    """Sessions that are still to be held could pass for failed ones, which are counted for all sets together.

    Raises:
        UserError: stage simulate began in this folder and has not ended.
    """
    path = folder / "manifests" / "simulate.json"
    if path.is_file() and records.read_json(path)["ended"] is None:
        raise UserError(f"{path}: stage simulate has not ended, so sessions may be missing; call it again until it has")


def failed_sessions(folder: Path) -> int:
    """How many sessions ended as a Failure in stage simulate."""
    path = folder / FAILED
    return len({f.subject for f in records.iterate(path, Failure)}) if path.is_file() else 0


def enter(sessions: Iterable[Session], scripts: dict[str, Script], lost: int = 0) -> Field:
    """The train and test clients with one session of every contestant; up to `lost` may be missing.

    Raises:
        UserError: more sessions are missing than failed; a client has two of one contestant, or of two scripts, or of
            fewer than two contestants; a session's script is not in scripts.jsonl; two contestants have one name;
            fewer than two clients or contestants.
    """
    rated = sorted((s for s in sessions if s.split in RATED_SPLITS), key=lambda s: (s.profile_id, s.therapist.name))
    contestants = tuple(sorted({s.therapist.name for s in rated}))
    table: dict[str, dict[str, Session]] = {}
    known: dict[str, Session] = {}
    for session in rated:
        of_client = table.setdefault(session.profile_id, {})
        if session.therapist.name in of_client:
            raise UserError(
                f"sessions.jsonl: client {session.profile_id} has two sessions of contestant "
                f"{session.therapist.name!r}; a tournament takes one of each"
            )
        script_of(session, scripts)
        _same_script(next(iter(of_client.values()), session), session)
        _same_contestant(known.setdefault(session.therapist.name, session), session)
        of_client[session.therapist.name] = session
    if len(table) < 2 or len(contestants) < 2:
        raise UserError(
            f"sessions.jsonl: {len(table)} train and test clients and {len(contestants)} contestants "
            f"({', '.join(contestants)}); a tournament needs two of each or more"
        )
    missing = [f"{name!r} with client {c}" for c, found in table.items() for name in contestants if name not in found]
    if len(missing) > lost:
        raise UserError(
            f"sessions.jsonl: {len(missing)} sessions are missing (first: contestant {missing[0]}) and {lost} failed "
            f"({FAILED}); every contestant must meet every train and test client, so finish stage simulate first"
        )
    table = {client: of_client for client, of_client in table.items() if len(of_client) > 1}
    return Field(contestants, table, scripts)


def _same_script(first: Session, session: Session) -> None:
    if first.script_id != session.script_id:
        raise UserError(
            f"sessions.jsonl: sessions {first.id} and {session.id} with client {session.profile_id} follow different "
            f"scripts, {first.script_id} and {session.script_id}; only sessions of one script can meet"
        )


def _same_contestant(first: Session, session: Session) -> None:
    ours, theirs = first.therapist.model_dump(), session.therapist.model_dump()
    differs = [f"{key} {ours[key]!r} and {theirs[key]!r}" for key in ours if ours[key] != theirs[key]]
    if differs:
        raise UserError(
            f"sessions.jsonl: two contestants have the name {session.therapist.name!r}, in sessions {first.id} and "
            f"{session.id}: {'; '.join(differs)}; a name stands for one model, prompt and sampling"
        )


def script_of(session: Session, scripts: dict[str, Script]) -> Script:
    if session.script_id not in scripts:
        raise UserError(
            f"sessions.jsonl: session {session.id} follows script {session.script_id}, which is not in scripts.jsonl "
            f"({len(scripts)} scripts)"
        )
    return scripts[session.script_id]


def dev_pairs(sessions: Iterable[Session], base: str, repeat: str, lost: int = 0) -> list[tuple[Session, Session]]:
    """Base against its repeat on each dev client, in client order; up to `lost` clients may lack one and are left out.

    Raises:
        UserError: no dev client has both, or more lack one than sessions failed.
    """
    found: dict[str, dict[str, Session]] = {}
    for session in sessions:
        if session.split == "dev":
            found.setdefault(session.profile_id, {})[session.therapist.name] = session
    if not found:
        of_lost = f" ({lost} sessions failed: {FAILED})" if lost else ""
        raise UserError(f"sessions.jsonl: no dev client{of_lost}; the judge's tie thresholds are set on dev clients")
    lacking = [(client, name) for client, of in sorted(found.items()) for name in (base, repeat) if name not in of]
    whole = sorted(found.keys() - {client for client, _ in lacking})
    if len(lacking) > lost or not whole:
        client, name = lacking[0]
        raise UserError(
            f"sessions.jsonl: dev client {client} has no session of {name!r} (config keys base, base_repeat); "
            f"it has {', '.join(sorted(found[client]))}"
        )
    return [(found[client][base], found[client][repeat]) for client in whole]

"""Stage `tournament`: sessions of train and test clients meet, by default in Swiss rounds; battles become ratings.

Reads sessions.jsonl and scripts.jsonl. Writes judge.json (the judge and its shadow, calibrated on dev clients and
frozen before any battle), battles.jsonl, failures.jsonl if a judgement failed, and ratings.json.
A battle is on disk before the next is judged, and pairing depends on nothing but the battles before it: after a
kill the stage goes on where it stood, and the same sessions give the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from pydantic import Field as Bounded
from tqdm import tqdm

from psychepass import records
from psychepass.config import StageConfig, load
from psychepass.errors import UserError
from psychepass.run import stage_run
from psychepass.schema import Battle, Dimension, Failure, JudgeIdentity, Script, Session
from tournament import pairing, ratings
from tournament.bradley_terry import PRIOR_TIES
from tournament.judge import Judge, Outcome, match, points_of, subject
from tournament.lexicon import LexiconName
from tournament.pairing import PairingName
from tournament.prediction import calibration
from tournament.reference_judge import ReferenceJudge, calibrate
from tournament.swiss import Round, Standings

RATED_SPLITS = ("train", "test")


class TournamentConfig(StageConfig):
    """`base` and `base_repeat` are contestants of the same model and prompt that differ in seed alone: what the
    judge finds between them on dev clients is noise, and sets its tie thresholds. `rounds` a client: null is the
    pairing's own number. `ties` in the ratings: half a win for each, or Davidson's model."""

    base: str
    base_repeat: str
    pairing: PairingName = "swiss"
    rounds: int | None = Bounded(default=None, ge=1)
    ties: ratings.Ties = "half"


@dataclass(frozen=True)
class Field:
    """Who plays: sessions[client][contestant], clients and contestants in name order.

    A contestant whose session with a client ended as a Failure sits out that client's tournament.
    """

    contestants: tuple[str, ...]
    sessions: dict[str, dict[str, Session]]
    scripts: dict[str, Script]

    def matches(self, name: PairingName = "swiss", rounds: int | None = None) -> int:
        """At most so many: see pairing.matches_of."""
        return sum(pairing.matches_of(name, len(of_client), rounds) for of_client in self.sessions.values())


def main(config_path: str, overrides: list[str]) -> None:
    config = load(TournamentConfig, config_path, overrides)
    folder = Path(config.run)
    inputs = [folder / "sessions.jsonl", folder / "scripts.jsonl"]
    # read and checked before the manifest is written: a field with a session missing leaves no trace of a run
    sessions = records.read(inputs[0], Session)
    scripts = {s.id: s for s in records.read(inputs[1], Script)}
    lost = failed_sessions(folder)
    entered, pairs = enter(sessions, scripts, lost), dev_pairs(sessions, config.base, config.base_repeat, lost)
    rounds = rounds_played(entered, config)
    with stage_run("tournament", config, inputs) as run:
        if run.done:
            return
        judge = frozen_judge(folder / "judge.json", pairs, scripts)
        with Journal(folder, judge.identity) as journal:
            play(entered, judge, config.seed, journal, config.pairing, config.rounds)
            outcomes = journal.outcomes()
        table = leaderboard(entered, outcomes, judge.identity, config.seed, config.ties)
        table |= {"pairing": config.pairing, "rounds": rounds}
        records.write_json(folder / "ratings.json", table)
        run.note(**{k: table[k] for k in ("n_clients", "n_battles", "failures", "tie_rate")})


def failed_sessions(folder: Path) -> int:
    """How many sessions ended as a Failure in stage simulate."""
    path = folder / "session_failures.jsonl"
    return len({f.subject for f in records.iterate(path, Failure)}) if path.is_file() else 0


def enter(sessions: Iterable[Session], scripts: dict[str, Script], lost: int = 0) -> Field:
    """The train and test clients with one session of every contestant; up to `lost` may be missing.

    Raises:
        UserError: more sessions are missing than failed; a client has two of one contestant, or of fewer than two
            contestants; a session's script is not in scripts.jsonl; two contestants have one name; fewer than two
            clients or contestants.
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
        _script_of(session, scripts)
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
            f"sessions.jsonl: {len(missing)} sessions are missing (first: contestant {missing[0]}) and {lost} failed; "
            f"every contestant must meet every train and test client, so finish stage simulate first"
        )
    table = {client: of_client for client, of_client in table.items() if len(of_client) > 1}
    return Field(contestants, table, scripts)


def _same_contestant(first: Session, session: Session) -> None:
    ours, theirs = first.therapist.model_dump(), session.therapist.model_dump()
    differs = [f"{key} {ours[key]!r} and {theirs[key]!r}" for key in ours if ours[key] != theirs[key]]
    if differs:
        raise UserError(
            f"sessions.jsonl: two contestants have the name {session.therapist.name!r}, in sessions {first.id} and "
            f"{session.id}: {'; '.join(differs)}; a name stands for one model, prompt and sampling"
        )


def _script_of(session: Session, scripts: dict[str, Script]) -> Script:
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
        raise UserError("sessions.jsonl: no dev client; the judge's tie thresholds are set on dev clients")
    lacking = [(client, name) for client, of in sorted(found.items()) for name in (base, repeat) if name not in of]
    whole = sorted(found.keys() - {client for client, _ in lacking})
    if len(lacking) > lost or not whole:
        client, name = lacking[0]
        raise UserError(
            f"sessions.jsonl: dev client {client} has no session of {name!r} (config keys base, base_repeat); "
            f"it has {', '.join(sorted(found[client]))}"
        )
    return [(found[client][base], found[client][repeat]) for client in whole]


def frozen_judge(path: Path, pairs: list[tuple[Session, Session]], scripts: dict[str, Script]) -> Judge:
    """The judge of this run; it and its shadow are calibrated once and written to `path` before any battle.

    Raises:
        UserError: `path` holds a judge of another version (a judge never changes within a run).
    """
    for session in (s for pair in pairs for s in pair):
        _script_of(session, scripts)
    judges = {name: ReferenceJudge(name, calibrate(pairs, scripts, name)) for name in get_args(LexiconName)}
    found = {name: _described(judge) for name, judge in judges.items()}
    if path.is_file():
        frozen = records.read_json(path)
        if frozen != found:
            raise UserError(
                f"{path}: this run's judge is {frozen['judge']['name']} {frozen['judge']['rubric_version']}, the code "
                f"now makes {found['judge']['name']} {found['judge']['rubric_version']}; use another run directory"
            )
    else:
        records.write_json(path, found)
    return judges["judge"]


def _described(judge: ReferenceJudge) -> dict[str, Any]:
    return judge.identity.model_dump(mode="json") | {"tau": {d.value: judge.tau[d] for d in Dimension}}


@dataclass
class Journal:
    """battles.jsonl and failures.jsonl of a run, held open: what is there, and appends.

    Raises:
        UserError: battles of another judge are there; one ranking has one judge.
    """

    folder: Path
    judge: JudgeIdentity
    known: dict[str, Outcome] = field(default_factory=dict)

    def __enter__(self) -> Journal:
        self._battles = records.Appender(self.folder / "battles.jsonl", Battle)
        self._failures = self.folder / "failures.jsonl"
        held = ((f"battle {b.id}", b.judge) for b in self._battles.done.values())
        ratings.one_judge([("this run", self.judge), *held])
        for battle in self._battles.done.values():
            self.known[subject(battle.session_a, battle.session_b)] = battle
        if self._failures.exists():
            with records.Appender(self._failures, Failure) as failures:
                self.known |= {f.subject: f for f in failures.done.values() if f.stage == "tournament"}
        return self

    def append(self, outcomes: Iterable[Outcome]) -> None:
        """Write what is not there yet; all battles of a match in one append."""
        new = [o for o in outcomes if _subject(o) not in self.known]
        self._battles.append(*(o for o in new if isinstance(o, Battle)))
        failed = [o for o in new if isinstance(o, Failure)]
        if failed:
            with records.Appender(self._failures, Failure) as failures:
                failures.append(*failed)
        self.known |= {_subject(o): o for o in new}

    def outcomes(self) -> list[Outcome]:
        return list(self.known.values())

    def __exit__(self, *exc: object) -> None:
        self._battles.__exit__(*exc)


def _subject(outcome: Outcome) -> str:
    return outcome.subject if isinstance(outcome, Failure) else subject(outcome.session_a, outcome.session_b)


def rounds_played(entered: Field, config: TournamentConfig) -> int:
    """Rounds of a client with all contestants.

    Raises:
        UserError: more rounds are asked for than there are without a rematch.
    """
    n = len(entered.contestants)
    if config.rounds and config.rounds > pairing.most_rounds(n):
        raise UserError(
            f"rounds: {config.rounds} rounds of {n} contestants need rematches, and two sessions are compared once; "
            f"permitted: 1 to {pairing.most_rounds(n)}, or null"
        )
    return pairing.rounds_of(config.pairing, n, config.rounds)


def play(
    entered: Field,
    judge: Judge,
    seed: int,
    journal: Journal,
    name: PairingName = "swiss",
    rounds: int | None = None,
) -> None:
    """All rounds of all clients, round by round. A match that could not be judged counts as a bye for pairing."""
    tables = {client: Standings.of(of_client) for client, of_client in entered.sessions.items()}
    last = {c: pairing.rounds_of(name, len(table.points), rounds) for c, table in tables.items()}
    with tqdm(total=entered.matches(name, rounds), desc="matches", unit="match") as bar:
        for round in range(1, max(last.values()) + 1):
            for wave in pairing.waves(name, [c for c in tables if round <= last[c]]):
                for client, paired in pairing.next_round(name, tables, wave, seed, round).items():
                    play_round(entered, client, paired, tables[client], judge, round, journal)
                    bar.update(len(paired.pairs))


def play_round(
    entered: Field, client: str, paired: Round, standings: Standings, judge: Judge, round: int, journal: Journal
) -> None:
    """The matches of one client's round: judged, written, and entered in its standings."""
    sessions = entered.sessions[client]
    for a, b in paired.pairs:
        script = entered.scripts[sessions[a].script_id]
        outcomes = match(judge, sessions[a], sessions[b], script, round, journal.known)
        journal.append(outcomes)
        standings.record(a, b, points_of(sessions[a].id, outcomes))
    if paired.bye:
        standings.record_bye(paired.bye)


def leaderboard(
    entered: Field, outcomes: list[Outcome], identity: JudgeIdentity, seed: int, ties: ratings.Ties = "half"
) -> dict[str, Any]:
    """ratings.json: ratings a dimension and overall with their intervals, and what they rest on.

    `win_rate` counts a tie as half a win; `graph`, `resamples_flagged`, `groups` and Davidson's `nu`: see
    ratings.Table; `predicted`, of the overall verdicts: see prediction.calibration; `head_to_head` holds overall
    wins of the row's contestant over the column's.

    Raises:
        UserError: a contestant or all but one client without a judged battle.
    """
    battles = [o for o in outcomes if isinstance(o, Battle)]
    failures = len(outcomes) - len(battles)
    clients, wins_CKNN = ratings.wins_by_client(battles, entered.contestants)
    overall, ties_CK = ratings.COLUMNS.index("overall"), ratings.ties_by_client(battles) if ties == "davidson" else None
    try:
        table = ratings.rate(wins_CKNN, entered.contestants, seed=seed, ties_CK=ties_CK)
    except ValueError as e:
        raise UserError(f"battles.jsonl: {len(battles)} battles, {failures} failures: {e}") from e
    tie_rates = {name: _tie_rate(battles, name) for name in ratings.COLUMNS}
    rows = {name: [r.model_dump(mode="json") for r in rows] for name, rows in table.ratings.items()}
    return {
        "judge": identity.name,
        "rubric_version": identity.rubric_version,
        "n_clients": len(clients),
        "n_battles": len(battles),
        "n_contestants": len(entered.contestants),
        "sat_out": sum(len(entered.contestants) - len(of_client) for of_client in entered.sessions.values()),
        "failures": {"n": failures, "share": round(failures / len(outcomes), 6)},
        "tie_rate": tie_rates.pop("overall"),
        "tie_rates": tie_rates,
        "ties": {"model": ties, "nu": table.nu},
        "order_consistency": "by construction" if identity.order_free else _order_consistency(battles),
        "scale": {"baseline": ratings.BASELINE, "xi": ratings.XI, "prior_ties": PRIOR_TIES},
        "interval": {"method": table.method, "level": 0.95, "unit": "client"},
        "graph": table.graph,
        "resamples_flagged": table.resamples_flagged,
        "groups": table.groups,
        "predicted": calibration(wins_CKNN[:, overall], None if ties_CK is None else ties_CK[:, overall]),
        "overall": rows.pop("overall"),
        "dimensions": rows,
        "head_to_head": {
            "contestants": list(entered.contestants),
            "wins": wins_CKNN[:, overall].sum(axis=0).tolist(),
        },
    }


def _tie_rate(battles: list[Battle], column: str) -> float:
    return _share(battles, lambda b: ratings.verdict(b, column).winner == "tie")


def _order_consistency(battles: list[Battle]) -> float | None:
    """Share of matches judged in both orders whose overall verdicts agree; None where there is none."""
    by_sessions = {(b.session_a, b.session_b): b for b in battles}
    both = [
        (b, by_sessions[b.session_b, b.session_a])
        for b in battles
        if b.session_a < b.session_b and (b.session_b, b.session_a) in by_sessions
    ]
    return _share(both, lambda m: m[0].overall.winner == m[1].swapped().overall.winner) if both else None


def _share(items: list[Any], holds: Callable[[Any], bool]) -> float:
    return round(sum(map(holds, items)) / len(items), 6)

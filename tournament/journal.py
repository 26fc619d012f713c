"""The battles and failures of a run on disk: what is there, and appends."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from psychepass import records
from psychepass.schema import Battle, Failure, JudgeIdentity
from tournament import ratings
from tournament.judge import Outcome, subject

FAILURES = "failures.jsonl"


@dataclass
class Journal:
    """battles.jsonl and failures.jsonl of a folder, held open: what is there, and appends. `stage`: of the failures.

    Raises:
        UserError: battles of another judge are there; one ranking has one judge.
    """

    folder: Path
    judge: JudgeIdentity
    stage: str = "tournament"
    known: dict[str, Outcome] = field(default_factory=dict)

    def __enter__(self) -> Journal:
        self._battles = records.Appender(self.folder / "battles.jsonl", Battle)
        self._failures: records.Appender | None = None
        held = ((f"battle {b.id}", b.judge) for b in self._battles.done.values())
        ratings.one_judge([("this run", self.judge), *held])
        for battle in self._battles.done.values():
            self.known[subject(battle.session_a, battle.session_b)] = battle
        if (self.folder / FAILURES).exists():
            failed = self._open_failures().done.values()
            self.known |= {f.subject: f for f in failed if f.stage == self.stage}
        return self

    def append(self, outcomes: Iterable[Outcome], sync: bool = True) -> None:
        """Write what is not there yet; all battles of a match in one append. Without `sync` they outlive this
        process, though not a power cut."""
        new = [o for o in outcomes if _subject(o) not in self.known]
        self._battles.write(*(o for o in new if isinstance(o, Battle)))
        failed = [o for o in new if isinstance(o, Failure)]
        if failed:
            self._open_failures().write(*failed)
        if sync:
            self.sync()
        self.known |= {_subject(o): o for o in new}

    def _open_failures(self) -> records.Appender:
        """Opened once: opening reads the file. A run without a failure has no such file."""
        if self._failures is None:
            self._failures = records.Appender(self.folder / FAILURES, Failure)
        return self._failures

    def sync(self) -> None:
        self._battles.sync()
        if self._failures:
            self._failures.sync()

    def failures(self) -> list[Failure]:
        return [o for o in self.known.values() if isinstance(o, Failure)]

    def outcomes(self) -> list[Outcome]:
        return list(self.known.values())

    def __exit__(self, *exc: object) -> None:
        self._battles.__exit__(*exc)
        if self._failures:
            self._failures.__exit__(*exc)


def _subject(outcome: Outcome) -> str:
    return outcome.subject if isinstance(outcome, Failure) else subject(outcome.session_a, outcome.session_b)

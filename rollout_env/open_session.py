"""A session in progress, and the three files of a folder that journal it."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from psychepass import records
from psychepass.schema import Failure, Session, Turn, TurnRecord, Usage, content_hash
from rollout_env.plan import Plan
from rollout_env.therapist import Answer, Conversation

TURNS, SESSIONS, FAILURES = "turns.jsonl", "sessions.jsonl", "session_failures.jsonl"


@dataclass
class OpenSession:
    """A session in progress."""

    plan: Plan
    turns: list[Turn] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)

    def ask(self, attempt: int) -> Conversation:
        """The next turn as the therapist is asked; another `attempt` is another draw."""
        plan, turn = self.plan, len(self.turns) + 1
        seed = [plan.therapist.seed, plan.seed, plan.script.profile_id, turn, attempt]
        return Conversation(
            key=plan.key,
            seed=int(content_hash(seed), 16) >> 1,
            system=plan.system,
            history=tuple((t.client, t.therapist) for t in self.turns),
            client=plan.client.say(turn),
            sampling=plan.sampling,
        )

    def add(self, answer: Answer) -> TurnRecord:
        scripted = self.plan.script.turns[len(self.turns)]
        turn = Turn(
            turn=scripted.turn,
            phase=scripted.phase,
            dimension=scripted.evaluator.dimension,
            client=self.plan.client.say(scripted.turn),
            therapist=answer.text,
            logprob=answer.logprob,
        )
        return self.resume(TurnRecord(session_key=self.plan.key, turn=turn, usage=answer.usage))

    def resume(self, record: TurnRecord) -> TurnRecord:
        self.turns.append(record.turn)
        self.usage += record.usage
        return record

    @property
    def complete(self) -> bool:
        return len(self.turns) == len(self.plan.script.turns)

    def session(self) -> Session:
        plan = self.plan
        return Session.model_validate(
            {
                "profile_id": plan.script.profile_id,
                "script_id": plan.script.id,
                "split": plan.split,
                "therapist": plan.therapist,
                "client": plan.client.identity,
                "target_words": plan.target_words,
                "seed": plan.seed,
                "turns": tuple(self.turns),
                "usage": self.usage,
            }
        )

    def failure(self, reason: str, usage: Usage, detail: str = "") -> Failure:
        """This session ends without a reply to its next turn."""
        plan, turn = self.plan, len(self.turns) + 1
        where = f"therapist {plan.therapist.name}, client {plan.script.profile_id}, seed {plan.seed}, turn {turn}"
        detail = f"{where}: {detail}" if detail else where
        return Failure(stage="simulate", subject=plan.key, reason=reason, detail=detail, usage=usage)


class SessionFiles:
    """The three files of a folder, open for appending."""

    def __init__(self, folder: Path):
        self.turns = records.Appender(folder / TURNS, TurnRecord)
        self.sessions = records.Appender(folder / SESSIONS, Session)
        self.failures = records.Appender(folder / FAILURES, Failure)

    def __enter__(self) -> SessionFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for appender in (self.turns, self.sessions, self.failures):
            appender.__exit__()

    def unfinished(self, plans: Iterable[Plan]) -> list[OpenSession]:
        """What is left to do, with the turns that the journal already has."""
        return _unfinished(plans, self.turns.done.values(), self.sessions.done, self.failures.done.values())


def peek_unfinished(plans: Iterable[Plan], folder: Path) -> list[OpenSession]:
    """As SessionFiles.unfinished, without opening the files for writing; the folder need not be there."""
    ended = {s.key for s in records.peek(folder / SESSIONS, Session)}
    turns, failures = records.peek(folder / TURNS, TurnRecord), records.peek(folder / FAILURES, Failure)
    return _unfinished(plans, turns, ended, failures)


def _unfinished(
    plans: Iterable[Plan], turns: Iterable[TurnRecord], ended: Collection[str], failures: Iterable[Failure]
) -> list[OpenSession]:
    said: dict[str, dict[int, TurnRecord]] = {}
    for record in turns:
        said.setdefault(record.session_key, {})[record.turn.turn] = record
    failed = {f.subject for f in failures}
    found = []
    for plan in plans:
        if plan.key in ended or plan.key in failed:
            continue
        session, spoken = OpenSession(plan), said.get(plan.key, {})
        while record := spoken.get(len(session.turns) + 1):
            session.resume(record)
        found.append(session)
    return found

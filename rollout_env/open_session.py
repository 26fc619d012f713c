"""A session in progress, and the files of a folder that journal it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from psychepass import records
from psychepass.schema import ClientLine, Failure, Session, Turn, TurnRecord, Usage, content_hash
from rollout_env.client import ScriptedClient
from rollout_env.plan import Plan
from rollout_env.therapist import Answer, Conversation

TURNS, SESSIONS, FAILURES = "turns.jsonl", "sessions.jsonl", "session_failures.jsonl"
LINES = "client_lines.jsonl"  # where a model plays the clients
DRAFTS = 2  # of a client's line: one retry


@dataclass
class OpenSession:
    """A session in progress. `lines`: turn -> drafts of what an LLM client says."""

    plan: Plan
    turns: list[Turn] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)
    lines: dict[int, list[ClientLine]] = field(default_factory=dict)

    @property
    def turn(self) -> int:
        """The next one."""
        return len(self.turns) + 1

    @property
    def drafts(self) -> list[ClientLine]:
        """Of the next turn's line."""
        return self.lines.get(self.turn, [])

    @property
    def settled(self) -> bool:
        """An LLM client is not asked again for the next line."""
        return bool(self.drafts) and (not self.drafts[-1].violations or len(self.drafts) == DRAFTS)

    @property
    def line(self) -> str | None:
        """The next line: the script's, or the draft that stands; None while there is none."""
        if isinstance(self.plan.client, ScriptedClient):
            return self.plan.client.say(self.turn)
        draft = standing(self.drafts) if self.settled else None
        return draft.text if draft else None

    def ask(self, attempt: int) -> Conversation:
        """The next turn as the therapist is asked; another `attempt` is another draw."""
        plan, turn, line = self.plan, self.turn, self.line
        assert line is not None, "the client speaks first"
        seed = [plan.therapist.seed, plan.seed, plan.script.profile_id, turn, attempt]
        return Conversation(
            key=plan.key,
            seed=int(content_hash(seed), 16) >> 1,
            system=plan.system,
            history=tuple((t.client, t.therapist) for t in self.turns),
            client=line,
            sampling=plan.sampling,
        )

    def add(self, answer: Answer) -> TurnRecord:
        scripted, line = self.plan.script.turns[len(self.turns)], self.line
        assert line is not None, "the client speaks first"
        turn = Turn(
            turn=scripted.turn,
            phase=scripted.phase,
            dimension=scripted.evaluator.dimension,
            client=line,
            therapist=answer.text,
            logprob=answer.logprob,
        )
        return self.resume(TurnRecord(session_key=self.plan.key, turn=turn, usage=answer.usage))

    def resume(self, record: TurnRecord) -> TurnRecord:
        self.turns.append(record.turn)
        self.usage += record.usage
        return record

    def hear(self, draft: ClientLine) -> None:
        self.lines.setdefault(draft.turn, []).append(draft)
        self.usage += draft.usage

    @property
    def violations(self) -> dict[str, int]:
        """Of the lines that stand, by kind."""
        stood = [standing(drafts) for drafts in self.lines.values()]
        return dict(sorted(Counter(kind for line in stood if line for kind in line.violations).items()))

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
                "violations": self.violations,
                "usage": self.usage,
            }
        )

    def failure(self, reason: str, usage: Usage | None = None, detail: str = "") -> Failure:
        """This session ends in its next turn. `usage`: of what no journal holds."""
        plan = self.plan
        where = f"therapist {plan.therapist.name}, client {plan.script.profile_id}, seed {plan.seed}, turn {self.turn}"
        detail = f"{where}: {detail}" if detail else where
        return Failure(stage="simulate", subject=plan.key, reason=reason, detail=detail, usage=usage or Usage())


def standing(drafts: Iterable[ClientLine]) -> ClientLine | None:
    """The draft that is spoken: the readable one with the fewest violations, the later of equals."""
    readable = [d for d in drafts if d.text]
    return min(reversed(readable), key=lambda d: len(d.violations), default=None)


class SessionFiles:
    """The files of a folder, open for appending; `lines` only where a model plays the clients."""

    def __init__(self, folder: Path, with_lines: bool = False):
        self.lines = records.Appender(folder / LINES, ClientLine) if with_lines else None
        self.turns = records.Appender(folder / TURNS, TurnRecord)
        self.sessions = records.Appender(folder / SESSIONS, Session)
        self.failures = records.Appender(folder / FAILURES, Failure)

    def __enter__(self) -> SessionFiles:
        return self

    def __exit__(self, *_: object) -> None:
        for appender in (self.lines, self.turns, self.sessions, self.failures):
            if appender is not None:
                appender.__exit__()

    def unfinished(self, plans: Iterable[Plan]) -> list[OpenSession]:
        """What is left to do, with the turns that the journal already has."""
        lines = self.lines.done.values() if self.lines else ()
        return _unfinished(plans, self.turns.done.values(), self.sessions.done, self.failures.done.values(), lines)


def peek_unfinished(plans: Iterable[Plan], folder: Path) -> list[OpenSession]:
    """As SessionFiles.unfinished, without opening the files for writing; the folder need not be there."""
    ended = {s.key for s in records.peek(folder / SESSIONS, Session)}
    turns, failures = records.peek(folder / TURNS, TurnRecord), records.peek(folder / FAILURES, Failure)
    return _unfinished(plans, turns, ended, failures, records.peek(folder / LINES, ClientLine))


def _unfinished(
    plans: Iterable[Plan],
    turns: Iterable[TurnRecord],
    ended: Collection[str],
    failures: Iterable[Failure],
    lines: Iterable[ClientLine],
) -> list[OpenSession]:
    said: dict[str, dict[int, TurnRecord]] = {}
    drafts: dict[str, list[ClientLine]] = {}
    for line in lines:
        drafts.setdefault(line.session_key, []).append(line)
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
        for draft in drafts.get(plan.key, ()):
            session.hear(draft)
        found.append(session)
    return found

"""Clients meet therapists: many sessions at once, each turn journalled as soon as its batch is done.

The stages `simulate` and `heldout` both call `simulate`. In `folder` they get
    turns.jsonl             a TurnRecord for each exchange, finished session or not
    sessions.jsonl          a Session once its last turn is said
    session_failures.jsonl  a Failure for each session that ended without a reply
A call that was killed goes on from the journal: no finished turn is asked again.

A reply with nothing in it is drawn once more with another seed. If that is empty too, the session ends
as a Failure; it is not completed by other means and not tried again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from psychepass.records import Appender
from psychepass.run import say
from psychepass.schema import (
    Failure,
    Sampling,
    Script,
    Session,
    Turn,
    TurnRecord,
    Usage,
    content_hash,
)
from psychepass.splits import Split
from psychepass.weights import resolve
from rollout_env.plan import Plan, plan_sessions
from rollout_env.therapist import (
    Answer,
    Conversation,
    LocalTherapists,
    RuleTherapists,
    TherapistEntry,
)

Therapists = RuleTherapists | LocalTherapists


@dataclass
class _Open:
    """A session in progress."""

    plan: Plan
    turns: list[Turn] = field(default_factory=list)
    usage: Usage = field(default_factory=Usage)

    def ask(self, attempt: int) -> Conversation:
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
        self.usage = _sum([self.usage, record.usage])
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


class _Files:
    """The three files of a folder, open for appending."""

    def __init__(self, folder: Path):
        self.turns = Appender(folder / "turns.jsonl", TurnRecord)
        self.sessions = Appender(folder / "sessions.jsonl", Session)
        self.failures = Appender(folder / "session_failures.jsonl", Failure)

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *_: object) -> None:
        for appender in (self.turns, self.sessions, self.failures):
            appender.__exit__()

    def unfinished(self, plans: Iterable[Plan]) -> list[_Open]:
        """What is left to do, with the turns that the journal already has."""
        said: dict[str, dict[int, TurnRecord]] = {}
        for record in self.turns.done.values():
            said.setdefault(record.session_key, {})[record.turn.turn] = record
        failed = {f.subject for f in self.failures.done.values()}
        found = []
        for plan in plans:
            if plan.key in self.sessions.done or plan.key in failed:
                continue
            session, records = _Open(plan), said.get(plan.key, {})
            while record := records.get(len(session.turns) + 1):
                session.resume(record)
            found.append(session)
        return found


def simulate(
    scripts: Sequence[Script],
    therapists: Sequence[TherapistEntry],
    seeds: Sequence[int],
    split_of: Mapping[str, Split],
    *,
    folder: Path,
    target_words: int,
    sampling: Sampling,
    meets: Mapping[Split, Sequence[str]] | None = None,
    heldout: bool = False,
    cache_gib: float = 4.0,
) -> list[Session]:
    """Hold every session of `scripts` x `therapists` x `seeds` that is not there yet; returns all of them.

    Args:
        split_of: profile id -> set.
        meets: set -> names of the therapists its clients meet; None: all meet all.
        heldout: must be true for held-out clients and false for all others.
        cache_gib: bounds the key-value cache of a local model.

    Raises:
        UserError: two therapists of one name, an unknown name in `meets`, a client of the wrong set.
    """
    plans = plan_sessions(scripts, therapists, seeds, split_of, target_words, sampling, meets, heldout)
    with _Files(folder) as files:
        todo = files.unfinished(plans)
        turns = sum(len(s.plan.script.turns) - len(s.turns) for s in todo)
        with tqdm(total=turns, desc="turns", unit="turn", disable=not turns) as bar:
            for speaker, sessions in _by_speaker(todo, therapists, cache_gib):
                _hold(speaker, sessions, files, bar)
        failed = len({f.subject for f in files.failures.done.values()} & {p.key for p in plans})
        if failed:
            say(f"{failed} of {len(plans)} sessions ended without a reply: {folder / 'session_failures.jsonl'}")
        return [files.sessions.done[p.key] for p in plans if p.key in files.sessions.done]


def _by_speaker(
    sessions: Sequence[_Open], therapists: Sequence[TherapistEntry], cache_gib: float
) -> Iterable[tuple[Therapists, list[_Open]]]:
    """Sessions that one batch can hold together: those of the same weights, or of the same rules."""
    entries = {e.name: e for e in therapists}
    groups: dict[tuple[str, str], list[_Open]] = {}
    for session in sessions:
        entry = entries[session.plan.therapist.name]
        groups.setdefault((entry.kind, str(entry.weights or entry.rules)), []).append(session)
    for group in groups.values():
        entry = entries[group[0].plan.therapist.name]
        if entry.rules:
            yield RuleTherapists(entry.rules), group
        else:
            yield LocalTherapists(resolve(str(entry.weights)), cache_gib), group


def _hold(speaker: Therapists, sessions: list[_Open], files: _Files, bar: tqdm) -> None:
    sizes = [(s.plan.system, [t.client.trigger for t in s.plan.script.turns], s.plan.sampling) for s in sessions]
    n_batches = -(-len(sessions) // speaker.batch_size(sizes))
    for i in range(n_batches):  # equal shares; neighbours in the plan have similar lengths
        batch = sessions[i::n_batches]
        speaker.open([s.plan.key for s in batch])
        while batch:
            finished = [s for s in batch if s.complete]
            if finished:
                files.sessions.append(*(s.session() for s in finished))
            batch = [s for s in batch if not s.complete]
            if batch:
                batch = _turn(speaker, batch, files, bar)


def _turn(speaker: Therapists, sessions: list[_Open], files: _Files, bar: tqdm) -> list[_Open]:
    """Each session's next exchange; returns those that got a reply."""
    answers = speaker.reply([s.ask(attempt=0) for s in sessions])
    empty = [i for i, a in enumerate(answers) if not a.text]
    if empty:
        again = speaker.reply([sessions[i].ask(attempt=1) for i in empty])
        for i, answer in zip(empty, again, strict=True):
            answers[i] = Answer(answer.text, answer.logprob, _sum([answers[i].usage, answer.usage]))
    spoken = [(s, a) for s, a in zip(sessions, answers, strict=True) if a.text]
    files.turns.append(*(s.add(a) for s, a in spoken))
    for s, a in zip(sessions, answers, strict=True):
        if not a.text:
            files.failures.append(_failure(s, a))
    bar.update(len(spoken))
    return [s for s, _ in spoken]


def _failure(session: _Open, answer: Answer) -> Failure:
    plan, turn = session.plan, len(session.turns) + 1
    return Failure(
        stage="simulate",
        subject=plan.key,
        reason="empty reply, twice",
        detail=f"therapist {plan.therapist.name}, client {plan.script.profile_id}, seed {plan.seed}, turn {turn}",
        usage=answer.usage,
    )


def _sum(usages: Sequence[Usage]) -> Usage:
    return Usage(
        calls=sum(u.calls for u in usages),
        prompt_tokens=sum(u.prompt_tokens for u in usages),
        completion_tokens=sum(u.completion_tokens for u in usages),
        seconds=round(sum(u.seconds for u in usages), 4),
        cost_usd=sum(u.cost_usd for u in usages),
    )

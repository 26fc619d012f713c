"""Clients meet therapists: many sessions at once, each turn journalled as soon as its batch is done.

The stages `simulate` and `heldout` both call `simulate`. In `folder` they get
    turns.jsonl             a TurnRecord for each exchange, finished session or not
    sessions.jsonl          a Session once its last turn is said
    session_failures.jsonl  a Failure for each session that ended without a reply
    ledger_simulate.jsonl   a line for each call to an endpoint, if there are any
A call that was killed goes on from the journal: no finished turn is asked again.

A reply with nothing in it is drawn once more with another seed. If that is empty too, the session ends
as a Failure; it is not completed by other means and not tried again. Endpoints: rollout_env/endpoint_sessions.py.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tqdm import tqdm

from psychepass.endpoint import Endpoint
from psychepass.errors import UserError
from psychepass.ledger import Ledger
from psychepass.run import say
from psychepass.schema import Sampling, Script, Session
from psychepass.splits import Split
from psychepass.weights import resolve
from rollout_env.endpoint_sessions import hold_over_endpoints
from rollout_env.open_session import OpenSession, SessionFiles
from rollout_env.plan import plan_sessions
from rollout_env.therapist import Answer, LocalTherapists, RuleTherapists, TherapistEntry

LEDGER = "ledger_simulate.jsonl"
Therapists = RuleTherapists | LocalTherapists


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
    budget_usd: float | None = None,
) -> list[Session]:
    """Hold every session of `scripts` x `therapists` x `seeds` that is not there yet; returns all of them.

    Args:
        split_of: profile id -> set.
        meets: set -> names of the therapists its clients meet; None: all meet all.
        heldout: must be true for held-out clients and false for all others.
        cache_gib: bounds the key-value cache of a local model.
        budget_usd: what all calls to endpoints may cost together, those of earlier runs included.

    Raises:
        UserError: two therapists of one name, an unknown name in `meets`, a client of the wrong set, an endpoint
            whose key, address or model is wrong; and at the end, where sessions were left open for the next run.
    """
    plans = plan_sessions(scripts, therapists, seeds, split_of, target_words, sampling, meets, heldout)
    with SessionFiles(folder) as files:
        todo = files.unfinished(plans)
        entries = {e.name: e for e in therapists}
        turns = sum(len(s.plan.script.turns) - len(s.turns) for s in todo)
        with tqdm(total=turns, desc="turns", unit="turn", disable=not turns) as bar:
            left_open = _over_endpoints(todo, entries, files, folder / LEDGER, budget_usd, bar)
            for speaker, sessions in _by_speaker(todo, entries, cache_gib):
                _hold(speaker, sessions, files, bar)
        failed = len({f.subject for f in files.failures.done.values()} & {p.key for p in plans})
        if failed:
            say(f"{failed} of {len(plans)} sessions ended without a reply: {folder / 'session_failures.jsonl'}")
        if left_open:
            reasons = "; ".join(f"{n}: {reason}" for reason, n in left_open.most_common())
            raise UserError(
                f"{left_open.total()} of {len(plans)} sessions were left open ({reasons}); what was said is kept, "
                "call the stage again to go on"
            )
        return [files.sessions.done[p.key] for p in plans if p.key in files.sessions.done]


def endpoint_groups(
    sessions: Iterable[OpenSession], entries: Mapping[str, TherapistEntry]
) -> list[tuple[Endpoint, list[OpenSession]]]:
    """Sessions by endpoint; equal endpoints are one, whichever entries name them."""
    groups: dict[str, tuple[Endpoint, list[OpenSession]]] = {}
    for session in sessions:
        endpoint = entries[session.plan.therapist.name].endpoint
        if endpoint:
            groups.setdefault(repr(endpoint), (endpoint, []))[1].append(session)
    return list(groups.values())


def _over_endpoints(
    todo: Sequence[OpenSession],
    entries: Mapping[str, TherapistEntry],
    files: SessionFiles,
    path: Path,
    budget_usd: float | None,
    bar: tqdm,
) -> Counter[str]:
    groups = endpoint_groups(todo, entries)
    if not groups:
        return Counter()
    with Ledger(path, budget_usd) as ledger:
        before_usd = ledger.spent_usd
        left_open = hold_over_endpoints(groups, files, ledger, bar)
        say(f"endpoints: {ledger.spent_usd - before_usd:.4f} USD in this run, {ledger.spent_usd:.4f} in all ({path})")
    return left_open


def _by_speaker(
    sessions: Sequence[OpenSession], entries: Mapping[str, TherapistEntry], cache_gib: float
) -> Iterable[tuple[Therapists, list[OpenSession]]]:
    """Sessions that one batch can hold together: those of the same weights, or of the same rules."""
    groups: dict[tuple[str, str], list[OpenSession]] = {}
    for session in sessions:
        entry = entries[session.plan.therapist.name]
        if entry.kind != "endpoint":
            groups.setdefault((entry.kind, str(entry.weights or entry.rules)), []).append(session)
    for group in groups.values():
        entry = entries[group[0].plan.therapist.name]
        if entry.rules:
            yield RuleTherapists(entry.rules), group
        else:
            yield LocalTherapists(resolve(str(entry.weights)), cache_gib), group


def _hold(speaker: Therapists, sessions: list[OpenSession], files: SessionFiles, bar: tqdm) -> None:
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


def _turn(speaker: Therapists, sessions: list[OpenSession], files: SessionFiles, bar: tqdm) -> list[OpenSession]:
    """Each session's next exchange; returns those that got a reply."""
    answers = speaker.reply([s.ask(attempt=0) for s in sessions])
    empty = [i for i, a in enumerate(answers) if not a.text]
    if empty:
        again = speaker.reply([sessions[i].ask(attempt=1) for i in empty])
        for i, answer in zip(empty, again, strict=True):
            answers[i] = Answer(answer.text, answer.logprob, answers[i].usage + answer.usage)
    spoken = [(s, a) for s, a in zip(sessions, answers, strict=True) if a.text]
    files.turns.append(*(s.add(a) for s, a in spoken))
    for s, a in zip(sessions, answers, strict=True):
        if not a.text:
            files.failures.append(s.failure("empty reply, twice", a.usage))
    bar.update(len(spoken))
    return [s for s, _ in spoken]

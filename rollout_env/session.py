"""Clients meet therapists: many sessions at once, each turn journalled as soon as its batch is done.

The stages `simulate` and `heldout` both call `simulate`. In `folder` they get
    turns.jsonl             a TurnRecord for each exchange, finished session or not
    sessions.jsonl          a Session once its last turn is said
    session_failures.jsonl  a Failure for each session that ended without a reply, or without a line of its client
    ledger_simulate.jsonl   a line for each call to an endpoint, if there are any
    client_lines.jsonl      a ClientLine for each draft of a client's line, if a model plays the clients
A call that was killed goes on from the journal: no finished turn is asked again. A first empty or unreadable reply
makes no finished turn: its turn begins anew, with the same seeds.

A reply with nothing in it is drawn once more with another seed. If that is empty too, the session ends
as a Failure; it is not completed by other means and not tried again. Endpoints: rollout_env/endpoint_sessions.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from tqdm import tqdm

from psychepass.endpoint import Endpoint
from psychepass.errors import UserError
from psychepass.ledger import Ledger
from psychepass.left_open import LeftOpen
from psychepass.run import say
from psychepass.schema import Profile, Sampling, Script, Session
from psychepass.splits import Split
from psychepass.weights import resolve
from rollout_env.adherence import most_words
from rollout_env.client import ClientEntry
from rollout_env.client_lines import BatchVoice, adherence_line
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
    client: ClientEntry | None = None,
    profiles: Mapping[str, Profile] | None = None,
    ledger: str = LEDGER,
) -> list[Session]:
    """Hold every session of `scripts` x `therapists` x `seeds` that is not there yet; returns all of them.

    Args:
        split_of: profile id -> set.
        meets: set -> names of the therapists its clients meet; None: all meet all.
        heldout: must be true for held-out clients and false for all others.
        cache_gib: bounds the key-value cache of a local model.
        budget_usd: what all calls to endpoints may cost together, those of earlier runs included.
        ledger: the name of the file that lists the calls.
        client: who plays the clients, as `profiles` (profile id -> profile) describes them; None: the scripts speak.

    Raises:
        UserError: two therapists of one name, an unknown name in `meets`, a client of the wrong set, no session to
            hold, an endpoint whose key, address or model is wrong; and at the end, where sessions were left open for
            the next run (Unfinished, if an endpoint did not answer).
    """
    plans = plan_sessions(
        scripts, therapists, seeds, split_of, target_words, sampling, meets, heldout, client, profiles
    )
    if not plans:
        raise UserError(f"no session is to be held: {len(scripts)} clients meet none of the therapists; see meets")
    played_by = client.endpoint if client else None
    with SessionFiles(folder, with_lines=played_by is not None) as files:
        todo = files.unfinished(plans)
        entries = {e.name: e for e in therapists}
        turns = sum(len(s.plan.script.turns) - len(s.turns) for s in todo)
        with tqdm(total=turns, desc="turns", unit="turn", disable=not turns) as bar:
            left_open = LeftOpen()
            _over_endpoints(todo, entries, files, folder / ledger, budget_usd, bar, played_by, left_open)
            _in_batches(todo, entries, files, folder / ledger, budget_usd, bar, played_by, cache_gib, left_open)
        failed = len({f.subject for f in files.failures.done.values()} & {p.key for p in plans})
        if failed:
            told = f"{failed} of {len(plans)} sessions failed, and are not tried again"
            say(f"{told}: {folder / 'session_failures.jsonl'}")
        if files.lines:
            say(adherence_line(files.lines.done.values()))
        if left_open.total():
            raise left_open.error(f"{left_open.total()} of {len(plans)} sessions were left open", "what was said")
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
    played_by: Endpoint | None,
    left_open: LeftOpen,
) -> None:
    groups = endpoint_groups(todo, entries)
    if not groups:
        return
    with Ledger(path, budget_usd) as ledger:
        before_usd = ledger.spent_usd
        hold_over_endpoints(groups, files, ledger, bar, played_by, left_open)
        say(f"endpoints: {ledger.spent_usd - before_usd:.4f} USD in this run, {ledger.spent_usd:.4f} in all ({path})")


def _in_batches(
    todo: Sequence[OpenSession],
    entries: Mapping[str, TherapistEntry],
    files: SessionFiles,
    path: Path,
    budget_usd: float | None,
    bar: tqdm,
    played_by: Endpoint | None,
    cache_gib: float,
    left_open: LeftOpen,
) -> None:
    """The sessions of local weights and rules; an LLM client's endpoint may leave some open."""
    with ExitStack() as stack:
        voice = None
        if played_by and any(entries[s.plan.therapist.name].kind != "endpoint" for s in todo):
            ledger = stack.enter_context(Ledger(path, budget_usd))
            voice = stack.enter_context(BatchVoice(played_by, files, ledger, left_open))
        for speaker, sessions in _by_speaker(todo, entries, cache_gib):
            _hold(speaker, sessions, files, bar, voice)


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


def _hold(
    speaker: Therapists, sessions: list[OpenSession], files: SessionFiles, bar: tqdm, voice: BatchVoice | None = None
) -> None:
    sizes = [(s.plan.system, _longest_lines(s, played=voice is not None), s.plan.sampling) for s in sessions]
    n_batches = -(-len(sessions) // speaker.batch_size(sizes))
    for i in range(n_batches):  # equal shares; neighbours in the plan have similar lengths
        batch = sessions[i::n_batches]
        speaker.open([s.plan.key for s in batch])
        while batch:
            finished = [s for s in batch if s.complete]
            if finished:
                files.sessions.append(*(s.session() for s in finished))
            batch = [s for s in batch if not s.complete]
            if batch and voice:
                batch = voice.speak(batch)
            if batch:
                batch = _turn(speaker, batch, files, bar)


def _longest_lines(session: OpenSession, played: bool) -> list[str]:
    """What the client says, or text of the length that a model may say."""
    return ["word " * most_words(t) if played else t.client.trigger for t in session.plan.script.turns]


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

"""What is still to be asked of each model, for --dry-run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from psychepass.dry_run import Planned, word_tokens
from psychepass.endpoint import MESSAGE_TOKENS, Price, text_tokens
from rollout_env.open_session import OpenSession
from rollout_env.therapist import TherapistEntry

OWN_WEIGHTS = Price(input=0.0, output=0.0)


def planned_calls(sessions: Iterable[OpenSession], therapists: Sequence[TherapistEntry]) -> list[Planned]:
    """By model, in the order of the config; rules are no model.

    Replies are taken to have the length that the prompt asks for; at most, all are as long as the token bound
    lets them be, and stand in every later prompt.
    """
    by_model: dict[str, tuple[Price, list[OpenSession]]] = {}
    entries = {t.name: t for t in therapists}
    for t in therapists:
        if t.kind != "rules":
            price = t.endpoint.price if t.endpoint else OWN_WEIGHTS
            by_model.setdefault(_model(t), (price, []))
    for session in sessions:
        entry = entries[session.plan.therapist.name]
        if entry.kind != "rules":
            by_model[_model(entry)][1].append(session)
    return [_count(model, price, of_model) for model, (price, of_model) in by_model.items()]


def _model(entry: TherapistEntry) -> str:
    return entry.endpoint.name if entry.endpoint else str(entry.weights)


def _count(model: str, price: Price, sessions: Sequence[OpenSession]) -> Planned:
    calls = asked = said = most_asked = most_said = 0
    for s in sessions:
        reply, most_reply = word_tokens(s.plan.target_words), s.plan.sampling.max_tokens
        reply = min(reply, most_reply)
        turns = [text_tokens(t.client.trigger) + MESSAGE_TOKENS for t in s.plan.script.turns]
        prompt = text_tokens(s.plan.system) + MESSAGE_TOKENS + sum(turns[: len(s.turns)])
        prompt += sum(text_tokens(t.therapist) + MESSAGE_TOKENS for t in s.turns)
        for n, turn in enumerate(turns[len(s.turns) :]):
            prompt += turn
            calls += 1
            asked += prompt + n * (reply + MESSAGE_TOKENS)
            most_asked += prompt + n * (most_reply + MESSAGE_TOKENS)
            said += reply
            most_said += most_reply
    return Planned(model, price, calls, asked, said, most_asked, most_said)

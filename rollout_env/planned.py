"""What is still to be asked of each endpoint, for --dry-run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from psychepass.dry_run import Planned, word_tokens
from psychepass.endpoint import MESSAGE_TOKENS, Price, text_tokens
from rollout_env.open_session import OpenSession
from rollout_env.therapist import TherapistEntry


def planned_calls(sessions: Iterable[OpenSession], therapists: Sequence[TherapistEntry]) -> list[Planned]:
    """By model, in the order of the config; `therapists` are endpoints.

    Replies are taken to have the length that the prompt asks for; at most, all are as long as the token bound
    lets them be, and stand in every later prompt.
    """
    endpoints = {t.name: t.endpoint for t in therapists if t.endpoint}
    by_model: dict[str, tuple[Price, list[OpenSession]]] = {e.name: (e.price, []) for e in endpoints.values()}
    for session in sessions:
        by_model[endpoints[session.plan.therapist.name].name][1].append(session)
    return [_count(model, price, of_model) for model, (price, of_model) in by_model.items()]


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

"""What is still to be asked of each endpoint, for --dry-run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from psychepass.dry_run import Planned, word_tokens
from psychepass.endpoint import MESSAGE_TOKENS, Price, text_tokens
from rollout_env.client import LLMClient
from rollout_env.open_session import OpenSession
from rollout_env.therapist import TherapistEntry

RETRY_TOKENS = 160  # what a client is told of a line that left its script


def planned_calls(sessions: Iterable[OpenSession], therapists: Sequence[TherapistEntry]) -> list[Planned]:
    """By model, in the order of the config, the clients' last.

    Replies are taken to have the length that the prompt asks for, a client's line that of the script's; at most, all
    are as long as the token bound lets them be, stand in every later prompt, and each client's line is asked twice.
    """
    endpoints = {t.name: t.endpoint for t in therapists if t.endpoint}
    by_model: dict[str, tuple[Price, list[OpenSession]]] = {e.name: (e.price, []) for e in endpoints.values()}
    played: list[OpenSession] = []
    for session in sessions:
        if endpoint := endpoints.get(session.plan.therapist.name):
            by_model[endpoint.name][1].append(session)
        if isinstance(session.plan.client, LLMClient):
            played.append(session)
    found = [_total(model, price, (_replies(s) for s in of_model)) for model, (price, of_model) in by_model.items()]
    if played:
        client = played[0].plan.client
        assert isinstance(client, LLMClient)
        name = f"{client.endpoint.name} (clients)"
        found.append(_total(name, client.endpoint.price, (_lines(s) for s in played)))
    return found


class _Count(NamedTuple):
    calls: int
    asked: int
    said: int
    most_asked: int
    most_said: int


def _total(model: str, price: Price, counts: Iterable[_Count]) -> Planned:
    return Planned(model, price, *(sum(column) for column in zip((0,) * 5, *counts, strict=True)))


def _replies(session: OpenSession) -> _Count:
    """The therapist's calls of the turns that are left."""
    said, most_said = _reply_tokens(session)
    prompt, most_prompt = text_tokens(session.plan.system) + MESSAGE_TOKENS, 0
    calls = asked = most_asked = 0
    for turn, (line, most_line) in enumerate(_line_tokens(session), start=1):
        prompt, most_prompt = prompt + line, most_prompt + most_line - line
        if turn < session.turn:
            prompt += text_tokens(session.turns[turn - 1].therapist) + MESSAGE_TOKENS
            continue
        calls, asked, most_asked = calls + 1, asked + prompt, most_asked + prompt + most_prompt
        prompt, most_prompt = prompt + said + MESSAGE_TOKENS, most_prompt + most_said - said
    return _Count(calls, asked, calls * said, most_asked, calls * most_said)


def _lines(session: OpenSession) -> _Count:
    """The client's calls of the turns that are left; a line that has been said is not asked for again."""
    client = session.plan.client
    assert isinstance(client, LLMClient)
    reply, most_reply = _reply_tokens(session)
    history = most_history = calls = asked = said = most_asked = most_said = 0
    for turn, (line, most_line) in enumerate(_line_tokens(session), start=1):
        if turn > session.turn or (turn == session.turn and not session.settled):
            prompt = sum(text_tokens(m.content) + MESSAGE_TOKENS for m in client.messages(turn, (), ())) + history
            most_line = client.sampling.max_tokens + MESSAGE_TOKENS
            again = prompt + most_history + most_line + RETRY_TOKENS
            calls, asked, said = calls + 1, asked + prompt, said + line - MESSAGE_TOKENS
            most_asked += prompt + most_history + again
            most_said += 2 * client.sampling.max_tokens
        told = text_tokens(session.turns[turn - 1].therapist) if turn < session.turn else reply
        most_told = told if turn < session.turn else most_reply
        history += line + told + MESSAGE_TOKENS
        most_history += most_line - line + most_told - told
    return _Count(calls, asked, said, most_asked, most_said)


def _reply_tokens(session: OpenSession) -> tuple[int, int]:
    """As expected, and at most."""
    most = session.plan.sampling.max_tokens
    return min(word_tokens(session.plan.target_words), most), most


def _line_tokens(session: OpenSession) -> list[tuple[int, int]]:
    """Of each turn's client message: as expected, and at most."""
    client, found = session.plan.client, []
    for turn in session.plan.script.turns:
        text = session.turns[turn.turn - 1].client if turn.turn < session.turn else turn.client.trigger
        expected = text_tokens(text) + MESSAGE_TOKENS
        most = expected
        if isinstance(client, LLMClient) and turn.turn >= session.turn:
            most = client.sampling.max_tokens + MESSAGE_TOKENS
        found.append((expected, most))
    return found

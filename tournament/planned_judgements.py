"""What is still to be asked of each judge's model, for --dry-run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from psychepass.dry_run import Planned, word_tokens
from psychepass.endpoint import BYTES_PER_TOKEN, MESSAGE_TOKENS, Price, text_tokens
from psychepass.schema import Identity, Script, Session, Turn
from tournament import pairing
from tournament.endpoint_matches import by_presentation
from tournament.field import Field
from tournament.judge_reply import KEYS
from tournament.llm_judge import JudgeReply, is_final
from tournament.pairing import PairingName
from tournament.panel import Panel

REASON_WORDS = 30  # of one dimension, with its key and marks: an assumption
NOBODY = Identity(name="nobody", kind="rules", family="nobody")


class Shown(NamedTuple):
    """So many presentations of a group (a client's), and the tokens of one's prompt: as expected, and at most."""

    presentations: int
    prompt_tokens: float
    most_prompt_tokens: float


def planned_judgements(
    panel: Panel, entered: Field, name: PairingName, rounds: int | None, said: Iterable[JudgeReply]
) -> list[Planned]:
    """Of a tournament. Who will meet is not known before: a prompt is taken to hold two sessions of a client's mean
    length, at most its two longest. Adaptive pairing may plan fewer matches.
    """
    shown = {}
    for client, of_client in entered.sessions.items():
        presentations = 2 * pairing.matches_of(name, len(of_client), rounds)
        shown[client] = Shown(presentations, *prompt_sizes(panel, list(of_client.values())))
    client_of = {s.id: client for client, of in entered.sessions.items() for s in of.values()}
    return still_to_ask(panel, shown, said, client_of.get)


def still_to_ask(
    panel: Panel, shown: Mapping[str, Shown], said: Iterable[JudgeReply], group_of: Callable[[str], str | None]
) -> list[Planned]:
    """By model, in the order of the judges' names. `group_of`: session id -> its group in `shown`, None: of another
    plan. Thoughts of a judge that thinks are not foreseen, but the token bound, which holds for them too, is in the
    figures «at most».
    """
    done: Counter[tuple[str, str]] = Counter()
    for judges in by_presentation(said).values():
        for judge, replies in judges.items():
            group = group_of(replies[0].session_a)
            if group is not None:
                done[judge, group] += is_final(replies)
    by_model: dict[str, tuple[Price, list[float]]] = {}
    for judge in panel.judges:
        endpoint, bound = judge.entry.endpoint, judge.entry.sampling.max_tokens
        reply = min(word_tokens(REASON_WORDS * len(KEYS)), bound)
        sums = by_model.setdefault(endpoint.name, (endpoint.price, [0.0] * 5))[1]
        for group, (presentations, mean, most) in shown.items():
            calls = max(0, presentations - done[judge.entry.name, group])
            for i, tokens in enumerate((1, mean, reply, most, bound)):
                sums[i] += calls * tokens
    return [Planned(model, price, *(round(x) for x in sums)) for model, (price, sums) in by_model.items()]


def prompt_sizes(panel: Panel, sessions: Sequence[Session]) -> tuple[float, float]:
    """Tokens of a prompt that shows two of these sessions: two of mean length, and the two longest."""
    judge = panel.judges[0]
    sizes = sorted((text_tokens(judge.messages(s, s)[0].content) for s in sessions), reverse=True)
    longest = sizes[:2] if len(sizes) > 1 else 2 * sizes
    return fmean(sizes) + MESSAGE_TOKENS, fmean(longest) + MESSAGE_TOKENS


def expected_session(script: Script, reply_tokens: int, line_tokens: int | None = None) -> Session:
    """Stands for one that was not held: replies of that size; lines too, or the script's where there is no size."""
    turns = tuple(
        Turn(
            turn=t.turn,
            phase=t.phase,
            dimension=t.evaluator.dimension,
            client=t.client.trigger if line_tokens is None else _text(line_tokens),
            therapist=_text(reply_tokens),
        )
        for t in script.turns
    )
    who = {"therapist": NOBODY, "client": NOBODY, "split": "heldout", "target_words": 1, "seed": 0}
    return Session.model_validate({"profile_id": script.profile_id, "script_id": script.id, "turns": turns} | who)


def _text(tokens: int) -> str:
    return "x" * BYTES_PER_TOKEN * tokens


class Expected(NamedTuple):
    """Tokens of what was not said yet: a reply as the prompt asks for it and at most, a client's line at most (None:
    the scripts speak)."""

    reply: int
    most_reply: int
    most_line: int | None = None


def planned_comparison(
    panel: Panel,
    scripts: Sequence[Script],
    seeds: int,
    held: Iterable[Session],
    said: Iterable[JudgeReply],
    expected: Expected,
) -> list[Planned]:
    """Of stage heldout: each client's sessions of both policies, so many `seeds` each, meet in both orders, and those
    of the base among themselves. Prompts are measured where all sessions of a client are held, else estimated.
    """
    by_client: dict[str, list[Session]] = {}
    for session in held:
        by_client.setdefault(session.profile_id, []).append(session)
    shown = {}
    for script in scripts:
        sessions = by_client.get(script.profile_id, [])
        if len(sessions) == 2 * seeds:
            mean, most = prompt_sizes(panel, sessions)
        else:
            mean, _ = prompt_sizes(panel, [expected_session(script, expected.reply)])
            _, most = prompt_sizes(panel, [expected_session(script, expected.most_reply, expected.most_line)])
        shown[script.profile_id] = Shown(2 * (seeds**2 + math.comb(seeds, 2)), mean, most)
    client_of = {s.id: client for client, sessions in by_client.items() for s in sessions}
    return still_to_ask(panel, shown, said, client_of.get)

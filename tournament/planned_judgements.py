"""What is still to be asked of each judge's model, for --dry-run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from statistics import fmean

from psychepass.dry_run import Planned, word_tokens
from psychepass.endpoint import MESSAGE_TOKENS, Price, text_tokens
from psychepass.schema import Session
from tournament import pairing
from tournament.endpoint_matches import by_presentation
from tournament.field import Field
from tournament.judge_reply import KEYS
from tournament.llm_judge import JudgeReply, is_final, judge_prompt
from tournament.pairing import PairingName
from tournament.panel import Panel

REASON_WORDS = 30  # of one dimension, with its key and marks: an assumption


def planned_judgements(
    panel: Panel, entered: Field, name: PairingName, rounds: int | None, said: Iterable[JudgeReply]
) -> list[Planned]:
    """By model, in the order of the judges' names. Who will meet is not known before: a prompt is taken to hold two
    sessions of a client's mean length, at most its two longest. Thoughts of a judge that thinks are not foreseen, but
    the token bound, which holds for them too, is in the figures «at most». Adaptive pairing may plan fewer matches.
    """
    sizes = {client: _prompt_tokens(list(of.values())) for client, of in entered.sessions.items()}
    client_of = {s.id: client for client, of in entered.sessions.items() for s in of.values()}
    done: Counter[tuple[str, str]] = Counter()
    for judges in by_presentation(said).values():
        for judge, replies in judges.items():
            if replies[0].session_a in client_of:
                done[judge, client_of[replies[0].session_a]] += is_final(replies)
    by_model: dict[str, tuple[Price, list[float]]] = {}
    for judge in panel.judges:
        endpoint, bound = judge.entry.endpoint, judge.entry.sampling.max_tokens
        reply = min(word_tokens(REASON_WORDS * len(KEYS)), bound)
        sums = by_model.setdefault(endpoint.name, (endpoint.price, [0.0] * 5))[1]
        for client, (mean, most) in sizes.items():
            presentations = 2 * pairing.matches_of(name, len(entered.sessions[client]), rounds)
            calls = max(0, presentations - done[judge.entry.name, client])
            for i, tokens in enumerate((1, mean, reply, most, bound)):
                sums[i] += calls * tokens
    return [Planned(model, price, *(round(x) for x in sums)) for model, (price, sums) in by_model.items()]


def _prompt_tokens(sessions: list[Session]) -> tuple[float, float]:
    """Of two sessions of a client: of mean length, and of the two longest."""
    sizes = sorted((text_tokens(judge_prompt(s, s)) for s in sessions), reverse=True)
    return fmean(sizes) + MESSAGE_TOKENS, (sizes[0] + sizes[1]) / 2 + MESSAGE_TOKENS

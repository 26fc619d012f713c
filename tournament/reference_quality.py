"""The factor q in [0, 1] of the reference judge: is this a reply at all, before asking what it does.

q is the smallest of the terms of notes/protocol («The reference judge»); a term that the text limits
without naming a value for a breach is 0 there. Each is computed from the reply, the client's lines so
far and the therapist's own earlier replies.
"""

from __future__ import annotations

import re

from tournament.lexicon import Lexicon
from tournament.reference_context import Text, TurnContext
from tournament.textfeatures import FINISHED, english, ngrams, plain, tokens

ROLE_LABEL = re.compile(
    r"(?:^|[\n.!?]\s*)\W*(?:therapist|counsell?or|client|patient|user|assistant|system|human|ai|me|you|bot|doctor)\s*:",
    re.IGNORECASE,
)
BRACKETS = re.compile(r"[\[\](){}<>]")
MARKDOWN = re.compile(r"\*|__|`|~~|\||^\s*#|^\s*[-+•]\s|^\s*\d+[.)]\s|https?://", re.MULTILINE)


def quality(context: TurnContext, lexicon: Lexicon) -> tuple[float, str]:
    """(q, the name of the smallest term; "" where q is 1)."""
    terms = quality_terms(context, lexicon)
    name = min(terms, key=terms.__getitem__)
    return (terms[name], name) if terms[name] < 1 else (1.0, "")


def quality_terms(context: TurnContext, lexicon: Lexicon) -> dict[str, float]:
    """Every term by name, each in [0, 1]."""
    reply = context.reply
    # a shared 7-gram is a copied run of more than six words
    return {
        "length": length_term(len(reply.words), context.target_words),
        "finished": 1.0 if FINISHED.search(plain(reply.text).rstrip()) else 0.5,
        "repetition": float(repeated_share(reply.words) <= 0.10),
        "self-copy": float(all(overlap(reply, earlier) <= 0.5 for earlier in context.replies)),
        "client-copy": float(all(not reply.grams_7 & line.grams_7 for line in (context.line, *context.lines))),
        "function words": float(0.30 <= function_share(reply.text) <= 0.65),
        "form": float(not has_markup(reply.text)),
        "boilerplate": _boilerplate_term(context, lexicon),
    }


def length_term(words: int, target: int) -> float:
    """1 between 0.4 and 1.3 of the target, falling in a straight line to 0 at 0.15 and at 2."""
    ratio = words / target
    if ratio < 0.4:
        return max(0.0, (ratio - 0.15) / (0.4 - 0.15))
    return max(0.0, min(1.0, (2 - ratio) / (2 - 1.3)))


def repeated_share(words: list[str]) -> float:
    """Share of 4-grams that stood in the reply before."""
    grams = ngrams(words, 4)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def overlap(left: Text, right: Text) -> float:
    """Jaccard index of the 4-gram sets; texts too short for one are compared whole."""
    a, b = left.grams_4, right.grams_4
    if not a or not b:
        return float(left.words == right.words)
    shared = len(a & b)
    return shared / (len(a) + len(b) - shared)


def function_share(text: str) -> float:
    """Share of function words (english.yaml, `core`) among the words, contractions written out."""
    words = [w for w in tokens(text) if w != ","]
    return sum(w in english()["core"] for w in words) / len(words) if words else 0.0


def has_markup(text: str) -> bool:
    """A role label, a bracket or markdown."""
    return any(p.search(plain(text)) for p in (ROLE_LABEL, BRACKETS, MARKDOWN))


def _boilerplate_term(context: TurnContext, lexicon: Lexicon) -> float:
    if context.is_crisis:
        return 1.0
    return 0.5 if any(lexicon["boilerplate"].has(s) for s in context.reply.sentences) else 1.0

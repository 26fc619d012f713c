"""Three therapists made of rules: a reflector, an adviser and an explorer.

They read what any therapist reads, the conversation so far, and nothing of the script. A reply depends on
the conversation and the session's seed alone. Their words are in prompts/rules.yaml; risk lines get a
question about safety and a way to human help before anything else.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Literal

import yaml

from psychepass.schema import content_hash
from psychepass.words import words
from rollout_env.prompts import read_prompt

RuleName = Literal["reflector", "adviser", "explorer"]
Exchange = tuple[str, str]  # (client line, therapist reply)

SWAPS = {
    "i": "you", "me": "you", "my": "your", "mine": "yours", "myself": "yourself", "am": "are", "i'm": "you're",
    "i've": "you've", "i'd": "you'd", "i'll": "you'll", "you": "I", "your": "my", "yours": "mine", "yourself": "myself",
    "we": "you", "us": "you", "our": "your", "ours": "yours",
}  # fmt: skip
VERB = re.compile(
    r"(?:is|was|are|were|has|had|says?|said|'s|'ll|'d|\w{2,}ed|can't|\w+n't|does|did|will|would|went|got|left)$"
)
BELIEF = re.compile(
    r"\b(?:never|nothing|nobody|no one|always|everything|fail\w*|ruin\w*|useless|worthless|only|can't)\b"
)


# «the canteen door»: an article, one or two words, and an end
THING = re.compile(
    r"\b(?:the|my|our|that|this|an?) ((?:[a-z-]{3,} )?[a-z-]{4,})"
    r"(?=[.,;:!?]| (?:and|but|with|without|in|on|at|off|now|again|comes|goes|is|was|before|after|when|from|to|of)\b)"
)
CLAUSE_END = re.compile(r"[,;:.!—–]+|\s-\s|\s(?:and|but|because|so|till|until|though|if|when|where)\s")
MOST_WORDS = 40
NEUTRAL_WORDS = 12  # so short a line leaves the next step to the therapist
COPIED_WORDS = 5  # in a row, and a word of the frame may follow

# what each says to a risk, and to a request that a counselor cannot grant, in this order
CRISIS_PARTS = {
    "reflector": ("concern", "ask", "help"),
    "adviser": ("concern", "ask", "help", "distance"),
    "explorer": ("stay", "ask", "help"),
}
BOUNDARY_PARTS = {
    "reflector": ("warmth", "limit", "close"),
    "adviser": ("limit", "alternative", "step"),
    "explorer": ("limit", "warmth", "alternative"),
}


@cache
def bank() -> dict[str, Any]:
    """prompts/rules.yaml."""
    return yaml.safe_load(read_prompt("rules.yaml"))


@cache
def _cue(*path: str) -> re.Pattern[str]:
    found: Any = bank()["cues"]
    for name in path:
        found = found[name]
    return re.compile("|".join(found))


@cache
def _words(name: Literal["stop", "dangling", "prepositions", "vague"]) -> frozenset[str]:
    """`dangling` words cannot end a piece; they contain the `stop` words, which say little."""
    extra = bank()["stop"] + " " if name == "dangling" else ""
    return frozenset((extra + bank()[name]).split())


def bank_hash() -> str:
    """Identifies the wording."""
    return content_hash(read_prompt("rules.yaml"))


def answer(rules: RuleName, history: Sequence[Exchange], client: str, seed: int) -> str:
    """The reply to `client` after `history`, 15 to 40 words."""
    # a model that plays the client may write an apostrophe that no pattern of rules.yaml has
    client, history = client.replace("’", "'"), [(c.replace("’", "'"), t) for c, t in history]
    turn, text, before = len(history), client.lower(), history[-1][0].lower() if history else ""
    if _cue("crisis").search(text):
        return " ".join(_part("crisis", name, turn, seed, rules) for name in CRISIS_PARTS[rules])
    if _cue("crisis").search(before):
        return _pick(bank()["follow_up"], turn, seed, rules)
    for kind in bank()["cues"]["boundary"] if _cue("request").search(text) else ():
        if _cue("boundary", kind).search(text):
            limit = _pick(bank()["boundary"]["limit"][kind], turn, seed, rules)
            return " ".join(
                limit if part == "limit" else _part("boundary", part, turn, seed, rules)
                for part in BOUNDARY_PARTS[rules]
            )
    if rules in bank()["trauma"] and _cue("trauma").search(text):
        return _pick(bank()["trauma"][rules], turn, seed, rules).format(topic=topic_of(client, history, seed))
    return {"reflector": _reflector, "adviser": _adviser, "explorer": _explorer}[rules](history, client, seed)


def _reflector(history: Sequence[Exchange], client: str, seed: int) -> str:
    part, turn = bank()["reflector"], len(history)
    clause, topic, feeling = mirrored(client), topic_of(client, history, seed), _feeling(client, turn, seed)
    if clause is None and _is_neutral(client):
        return _pick(part["neutral"], turn, seed, "neutral").format(topic=topic)
    kind = "reflect" if clause else "name"
    reflection = _pick(part[kind], turn, seed, kind).format(clause=clause, topic=topic, feeling=feeling)
    earlier = recalled(client, history)
    with_recall = f"{reflection} {part['recall'].format(earlier=earlier)}"
    if earlier and len(with_recall.split()) <= MOST_WORDS:
        return _capital(with_recall)
    need = _pick(part["need"], turn, seed, "need").format(need=_first_fit("needs", client.lower()))
    return _capital(f"{reflection} {need}")


def _adviser(history: Sequence[Exchange], client: str, seed: int) -> str:
    part, turn, topic = bank()["adviser"], len(history), topic_of(client, history, seed)
    if mirrored(client) is None and _is_neutral(client):
        return _pick(part["neutral"], turn, seed, "neutral").format(topic=topic)
    step = None if "?" in client else _technique(client)
    if step:
        return f"{_pick(part['invite'], turn, seed, 'invite').format(topic=topic)} {step}"
    lead, advice, check, with_clause = (_pick(part[k], turn, seed, k) for k in ("lead", "advice", "check", "clause"))
    clause = mirrored(client)
    if clause and topic.split()[-1] not in client.lower():
        reply = f"{with_clause.format(clause=clause)} {advice} {check}"
        if len(reply.split()) <= MOST_WORDS:
            return _capital(reply)
    return f"{lead.format(topic=topic)} {advice} {check}"


def _explorer(history: Sequence[Exchange], client: str, seed: int) -> str:
    part, turn = bank()["explorer"], len(history)
    clause, topic = mirrored(client), topic_of(client, history, seed)
    if clause and BELIEF.search(clause.lower()):
        return _capital(_pick(part["belief"], turn, seed, "belief").format(clause=clause))
    earlier = recalled(client, history)
    lead = _pick(part["lead"], turn, seed, "lead").format(topic=topic)
    if earlier:
        return f"{lead} {part['recall'].format(earlier=earlier)}"
    if clause is None:
        return f"{lead} {_pick(part['open'], turn, seed, 'open').format(topic=topic)}"
    return f"{lead} {_pick(part['event'], turn, seed, 'event').format(clause=clause)}"


def _is_neutral(client: str) -> bool:
    return len(client.split()) <= NEUTRAL_WORDS


def _technique(client: str) -> str | None:
    """A step of the first technique whose cues the line has."""
    for cues, step in bank()["adviser"]["technique"]:
        if any(re.search(rf"\b{cue}", client) for cue in cues):
            return step
    return None


def _first_fit(name: str, text: str) -> str:
    """The entry of the bank's list `name` whose cues come first; the last one fits every line."""
    return next(found for cues, found in bank()[name] if any(re.search(rf"\b{cue}", text) for cue in cues))


def _part(group: str, name: str, turn: int, seed: int, rules: str) -> str:
    return _pick(bank()[group][name], turn, seed, f"{rules}{name}")


def _pick(options: Sequence[str], turn: int, seed: int, name: str) -> str:
    """Option number `turn` of an order drawn by seed and name: no repeat before the list is used up."""
    order = _order(len(options), f"{seed}:{name}")
    return options[order[turn % len(order)]]


@cache
def _order(n: int, seed: str) -> list[int]:
    return random.Random(seed).sample(range(n), n)


def _feeling(client: str, turn: int, seed: int) -> str:
    text = client.lower()
    for cues, names in bank()["feelings"]:
        unsaid = [n for n in names if n not in text]
        if unsaid and any(re.search(rf"\b{cue}", text) for cue in cues):
            return unsaid[(turn + seed) % len(unsaid)]
    raise AssertionError("the last entry fits every line")


def mirrored(client: str) -> str | None:
    """A piece of the line about its speaker, seen from the listener's side. Few words in a row stay as they were."""
    best: tuple[int, str] | None = None
    for tokens in _clauses(client):
        swapped = [_swapped(t) for t in tokens]
        if _longest_same(tokens, swapped) > COPIED_WORDS:
            continue
        swapped = [_agree(before, t) for before, t in zip(["", *swapped], swapped, strict=False)]
        telling = sum(t.lower() not in _words("stop") for t in tokens)
        score = telling + 3 * bool(BELIEF.search(" ".join(tokens).lower()))
        if best is None or score > best[0]:
            best = (score, " ".join(swapped))
    return best[1] if best else None


def _clauses(client: str) -> Iterator[list[str]]:
    """Pieces of 3 to 10 words that say something about the speaker and ask nothing."""
    for sentence in re.split(r"(?<=[.!?])\s+", client):
        if sentence.endswith("?"):
            continue
        for clause in CLAUSE_END.split(sentence):
            tokens = re.findall(r"[\w'’-]+", clause)
            start = next((i for i, t in enumerate(tokens) if _is_i(t)), len(tokens))
            if tokens and tokens[0].lower() in ("my", "our") and any(VERB.search(t.lower()) for t in tokens[2:4]):
                start = 0
            for end in range(start + 3, min(len(tokens), start + 10) + 1):
                # a piece may stop early, before a preposition
                whole = end == len(tokens) or tokens[end].lower() in _words("prepositions")
                if whole and tokens[end - 1].lower() not in _words("dangling"):
                    yield tokens[start:end]


def _is_i(token: str) -> bool:
    word = token.lower().replace("’", "'")
    return word == "we" or (word in SWAPS and word.startswith("i"))


def _swapped(token: str) -> str:
    return SWAPS.get(token.lower().replace("’", "'"), token)


def _agree(before: str, token: str) -> str:
    return "were" if before == "you" and token == "was" else token


def _longest_same(left: Sequence[str], right: Sequence[str]) -> int:
    longest = run = 0
    for a, b in zip(left, right, strict=True):
        run = run + len(words(a)) if a == b else 0
        longest = max(longest, run)
    return longest


def topic_of(client: str, history: Sequence[Exchange], seed: int) -> str:
    """«your sister»: whom or what the client last called theirs; else «the canteen door»; else «all of this»."""
    known = "|".join(bank()["topics"])
    lines = (client, *(said for said, _ in reversed(history[-3:])))
    for line in lines:
        if found := re.search(rf"\b(?:my|our) ((?:(?:little|old|older|younger|late) )?(?:{known}))\b", line.lower()):
            return f"your {found.group(1)}"
        if things := [m.group(1) for m in THING.finditer(line) if _names_a_thing(m.group(1).split())]:
            return f"the {max(things, key=len)}"
    return _pick(bank()["no_topic"], len(history), seed, "no_topic")


def _names_a_thing(tokens: Sequence[str]) -> bool:
    return not (VERB.search(tokens[-1]) or _words("vague") & set(tokens) or _words("stop") & set(tokens))


def recalled(client: str, history: Sequence[Exchange]) -> str | None:
    """A mirrored piece of the earlier line that shares at least two telling words with this one."""
    if not re.search(r"\b(?:again|that|same|those|remember|earlier|usual|used to|told you)\b", client.lower()):
        return None
    now = {w[:5] for w in words(client) if w not in _words("stop") and len(w) > 3}
    best: tuple[int, str] | None = None
    for said, _ in history[:-1]:
        piece = mirrored(said)
        shared = len(now & {w[:5] for w in words(said) if w not in _words("stop") and len(w) > 3})
        if piece and shared >= 2 and (best is None or shared > best[0]):
            best = (shared, piece)
    return best[1] if best else None


def _capital(text: str) -> str:
    """Capital letters at the start of each sentence, and for I."""
    return re.sub(r"(^|[.!?]\s+)([a-z])", lambda m: m.group(1) + m.group(2).upper(), text)

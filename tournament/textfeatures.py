"""Words, stems and sentences of a reply: the small English toolkit of the reference judge.

Plain string work without a tagger or parser, so that a score is the same on every machine. Two
heuristics stand in for syntax: a clause needs a verb from a closed list, and a sentence in which two
neighbouring function words cannot stand together in English ("the of", "my is") counts as scrambled.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

LEXICON_DIR = Path(__file__).parent / "lexicons"

CONTRACTIONS = {
    "can't": "can not",
    "cannot": "can not",
    "cant": "can not",
    "won't": "will not",
    "shan't": "shall not",
    "ain't": "is not",
    "dont": "do not",
    "doesnt": "does not",
    "didnt": "did not",
    "im": "i am",
    "ive": "i have",
    "youre": "you are",
    "thats": "that is",
    "let's": "let us",
    "y'all": "you",
}
ENDINGS = {"n't": " not", "'re": " are", "'ve": " have", "'ll": " will", "'d": " would", "'m": " am"}
WORD = re.compile(r"[a-z]+(?:'[a-z]+)*|\d+|[,;:\u2014\u2013]|--")
RAW_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)*")
SENTENCE_END = re.compile(r"(?<=[.!?…])\s+|(?<=[.!?…][\"')\]])\s+|\n+")
FINISHED = re.compile(r"(?<!\.)[.!?][\"')\]]*$")
TITLES = re.compile(r"\b(Dr|Mr|Mrs|Ms|St)\.")
CLAUSE_BREAKS = frozenset({"but", "though", "although", "however", "yet"})
NOT_NEGATING = (
    ("no", "wonder"),
    ("no", "doubt"),
    ("not", "only"),
    ("not", "just"),
    ("why", "not"),
    ("can", "not", "help"),
)


@cache
def english() -> dict[str, Any]:
    """Closed classes by name as frozensets of words; `forms` maps an irregular form to its base."""
    raw = yaml.safe_load((LEXICON_DIR / "english.yaml").read_text(encoding="utf-8"))
    return {k: v if isinstance(v, dict | list) else frozenset(_yaml_words(v)) for k, v in raw.items()}


def _yaml_words(text: str) -> list[str]:
    return str(text).split()


@cache
def function_words() -> frozenset[str]:
    classes = "articles possessives pronouns prepositions conjunctions auxiliaries negators particles"
    return frozenset().union(*(english()[c] for c in classes.split()))


@cache
def function_stems() -> frozenset[str]:
    return frozenset(stem(w) for w in function_words())


@cache
def weak_stems() -> frozenset[str]:
    """Stems that link nothing: function words, and words too general to be about anything."""
    return frozenset(stem(w) for w in function_words() | english()["weak"])


@cache
def verb_stems() -> frozenset[str]:
    return frozenset(stem(w) for w in english()["verbs"]) | english()["auxiliaries"]


def plain(text: str) -> str:
    """Straight quotes, no soft hyphens: what models write, in ASCII punctuation."""
    return text.translate({0x2019: "'", 0x2018: "'", 0x201C: '"', 0x201D: '"', 0xAD: None})


def raw_words(text: str) -> list[str]:
    """Words as a person counts them: a contraction is one word."""
    return RAW_WORD.findall(plain(text).lower())


def tokens(text: str) -> list[str]:
    """Lower-case words with contractions written out, and commas, colons and dashes as "," tokens."""
    found: list[str] = []
    for word in WORD.findall(plain(text).lower()):
        found.extend(_expand(word).split() if word[0].isalnum() else [","])
    return found


@lru_cache(maxsize=20_000)
def _expand(word: str) -> str:
    if word in CONTRACTIONS:
        return CONTRACTIONS[word]
    for ending, full in ENDINGS.items():
        if word.endswith(ending) and len(word) > len(ending):
            return word[: -len(ending)] + full
    if word.endswith("'s"):
        owner = word[:-2]
        return f"{owner} is" if owner in english()["is_owners"] else owner
    return word.replace("'", "")


@lru_cache(maxsize=50_000)
def stem(word: str) -> str:
    """A light stem: regular endings off, irregular forms and kin names unified. Not a lemma.

    >>> stem("worries") == stem("worried") == stem("worrying")
    True
    """
    base = english()["forms"].get(word)
    if base is not None:
        return base if base == word else stem(base)
    if word.endswith("s") and word[:-1] in english()["forms"]:
        return stem(word[:-1])
    if len(word) <= 3 or word in function_words():
        return word
    for ending, left in (("ness", 4), ("ment", 4), ("fully", 3), ("ful", 3), ("ingly", 4), ("edly", 4)):
        if word.endswith(ending) and len(word) - len(ending) >= left:
            word = word[: -len(ending)]
            break
    word = _strip_inflection(word)
    if word.endswith("ly") and len(word) > 5:
        word = word[:-2]
    if word.endswith("ion") and len(word) > 6 and word[-4] in "ts":
        word = word[:-3]
    if word.endswith(("y", "ie")) and len(word) > 3:
        word = word[:-1].rstrip("i") + "i" if word.endswith("y") else word[:-2] + "i"
    return word[:-1] if word.endswith("e") and len(word) > 3 else word


def _strip_inflection(word: str) -> str:
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith("ied") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("sses", "shes", "ches", "xes")):
        return word[:-2]
    if word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending in ("ing", "ed"):
        base = word[: -len(ending)]
        if word.endswith(ending) and len(base) >= 3 and re.search("[aeiouy]", base):
            doubled = len(base) > 3 and base[-1] == base[-2] and base[-1] not in "lsz"
            return base[:-1] if doubled else base
    return word


@dataclass(frozen=True)
class Sentence:
    """One sentence. `words` are the expanded tokens without commas; `stems` match them one to one."""

    number: int
    text: str
    words: tuple[str, ...]
    stems: tuple[str, ...]
    breaks: frozenset[int]  # positions in `words` in front of which a clause begins
    stemmed: str  # " stem stem stem ", what cue patterns search
    is_question: bool
    has_clause: bool

    def negated(self, position: int) -> bool:
        """Does a negator reach the word at `position`: one of the four words before it in its clause?

        "Or" passes the reach on ("you do not want rest or any praise"), and an opinion carries it to the
        end of the clause ("I would not say that it is only …").
        """
        for i in range(position - 1, -1, -1):
            if i + 1 in self.breaks:
                return False
            if self.words[i] in NEGATORS and not self._harmless(i):
                return position - i <= 4 or self.words[i + 1] in english()["opining"]
            if self.words[i] in {"or", "nor"}:
                return self.negated(i)
        return False

    def _harmless(self, i: int) -> bool:
        if self.is_question and 0 < i <= 2 and self.words[i - 1] in english()["auxiliaries"]:
            return True  # "Wouldn't it help to …?", "Isn't it lonely?"
        spans = (self.words[i : i + 2], self.words[i - 1 : i + 1], self.words[i - 1 : i + 2])
        return any(span in NOT_NEGATING for span in spans)

    def content(self) -> frozenset[str]:
        """Stems that name something: no function words, no weak words."""
        return frozenset(s for s in self.stems if s not in weak_stems() and len(s) > 1)

    def opening(self, n: int = 3) -> tuple[str, ...]:
        return self.words[:n]


SUBJECTS = frozenset({"i", "you", "we", "they", "he", "she"})
NEGATORS = english()["negators"] | {"instead", "rather", "nobody"}


def sentences(text: str) -> tuple[Sentence, ...]:
    """Split at sentence ends and line breaks; pieces without a word are dropped."""
    pieces = SENTENCE_END.split(TITLES.sub(r"\1", plain(text)))
    parsed = (parse_sentence(p.strip(), i) for i, p in enumerate((p for p in pieces if RAW_WORD.search(p)), start=1))
    return tuple(s for s in parsed if s.words)


def parse_sentence(text: str, number: int = 1) -> Sentence:
    stream = tokens(text)
    words = [w for w in stream if w != ","]
    breaks, position = {0}, 0
    for token in stream:
        if token == "," or token in CLAUSE_BREAKS:
            breaks.add(position)
        position += token != ","
    stems = [stem(w) for w in words]
    has_verb = any(s in verb_stems() for s in stems) or any(
        a in SUBJECTS and b not in function_words() for a, b in pairwise(words)
    )
    return Sentence(
        number=number,
        text=text,
        words=tuple(words),
        stems=tuple(stems),
        breaks=frozenset(breaks),
        stemmed=" " + " ".join(stems) + " ",
        is_question=text.rstrip("\"') ").endswith("?"),
        has_clause=has_verb and len(words) >= 2 and not scrambled(stream) and not is_list(stream),
    )


@cache
def _forbidden() -> frozenset[tuple[str, str]]:
    pairs = ((left.split(), right.split()) for left, right in english()["forbidden"])
    return frozenset((a, b) for lefts, rights in pairs for a in lefts for b in rights)


def scrambled(stream: list[str]) -> bool:
    """Is the word order none that English has: a forbidden pair of neighbours, or a last word that ends nothing?"""
    return bool(stream) and (stream[-1] in english()["not_last"] or any(p in _forbidden() for p in pairwise(stream)))


def is_list(stream: list[str]) -> bool:
    """Five or more pieces between commas, of fewer than three words on average: an enumeration of cues."""
    pieces = stream.count(",") + 1
    return pieces >= 5 and (len(stream) - pieces + 1) / pieces < 3


def ngrams(words: list[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]

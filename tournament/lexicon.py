"""Cue lists of the reference judge and its shadow, compiled for matching on stems.

The two YAML files fill the same slots with disjoint words; `version` is a hash over the content, so a
changed word is another rubric. Closed classes (pronouns, auxiliaries, question words) are grammar and
shared: english.yaml.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import yaml

from psychepass.schema import content_hash
from tournament.textfeatures import LEXICON_DIR, Sentence, stem, tokens

LexiconName = Literal["judge", "shadow"]
GAP = "~"


@dataclass(frozen=True)
class Hit:
    """A cue found in a sentence: positions of its first word and behind its last."""

    start: int
    end: int
    stems: tuple[str, ...]


class Cues:
    """One list of cues as a single pattern; the longest cue wins where several begin at one word."""

    def __init__(self, phrases: Iterable[str]):
        self.phrases = tuple(phrases)
        parts = sorted((cue_stems(p) for p in self.phrases), key=len, reverse=True)
        alternatives = "|".join(r" (?:\S+ ){0,4}?".join(re.escape(" ".join(run)) for run in _runs(p)) for p in parts)
        self._pattern = re.compile(rf"(?<= )(?:{alternatives})(?= )")

    def hits(self, sentence: Sentence) -> list[Hit]:
        found = []
        for match in self._pattern.finditer(sentence.stemmed):
            start = sentence.stemmed.count(" ", 0, match.start()) - 1
            stems = tuple(match.group().split())
            found.append(Hit(start, start + len(stems), stems))
        return found

    def asserted(self, sentence: Sentence) -> list[Hit]:
        """Hits that no negator in front reaches; a negator inside the cue belongs to it."""
        return [h for h in self.hits(sentence) if not sentence.negated(h.start)]

    def has(self, sentence: Sentence) -> bool:
        return bool(self.asserted(sentence))


def cue_stems(phrase: str) -> tuple[str, ...]:
    """The stems that a cue matches, with gaps kept."""
    return tuple(s for part in phrase.split() for s in ([GAP] if part == GAP else map(stem, tokens(part))))


def _runs(stems: tuple[str, ...]) -> list[list[str]]:
    runs: list[list[str]] = [[]]
    for s in stems:
        if s == GAP:
            runs.append([])
        else:
            runs[-1].append(s)
    return runs


@dataclass(frozen=True)
class Lexicon:
    """`lists` by name; `keyed` lists by name and key (affect, need, technique_name, technique_step, request)."""

    name: LexiconName
    version: str
    lists: Mapping[str, Cues]
    keyed: Mapping[str, Mapping[str, Cues]]

    def __getitem__(self, name: str) -> Cues:
        return self.lists[name]

    def of(self, name: str, key: str) -> Cues:
        """The cues of one key, e.g. of("affect", "grief"). Raises KeyError naming what is permitted."""
        if key not in self.keyed[name]:
            raise KeyError(f"{name} {key!r} is not in lexicon {self.name}; permitted: {', '.join(self.keyed[name])}")
        return self.keyed[name][key]


def read_lists(name: LexiconName) -> dict[str, Any]:
    return yaml.safe_load((LEXICON_DIR / f"{name}.yaml").read_text(encoding="utf-8"))


@cache
def load_lexicon(name: LexiconName) -> Lexicon:
    """Read, hash and compile one of the two shipped lexicons."""
    raw = read_lists(name)
    grammar = (LEXICON_DIR / "english.yaml").read_text(encoding="utf-8")
    return Lexicon(
        name=name,
        version=content_hash([raw, grammar]),
        lists={k: Cues(map(str, v)) for k, v in raw.items() if isinstance(v, list)},
        keyed={k: {key: Cues(c) for key, c in v.items()} for k, v in raw.items() if isinstance(v, dict)},
    )

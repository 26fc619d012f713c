"""Takes names, addresses, numbers and dates out of a seed, with Presidio's recognizers, in English and Chinese.

What is found becomes a placeholder such as [PERSON_1], the same one for the same words. Presidio finds e-mail
addresses, links, telephone, card, account and identity numbers by pattern and checksum, and dates. Names need more:

  Chinese   persons with a known surname or a form of address, places, employers (rollout_env/chinese_names.py)
  English   the names that an imported row gives itself; forms of address ("Dr X", "my name is X"); Faker's lists of
            given names; capitals, cues and a gazetteer (rollout_env/proper_names.py): places, employers, and NAME for
            what a capital alone tells

A spaCy pipeline with entities, installed by the user and named in the config, adds persons, places and
organisations. What is missed, and how much is replaced that is no name: docs/profiles.md. No recognizer finds
everything, nor who somebody is by what happened to them: the seed is only raw material for a
fictional person, and a person verifies every selected profile.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from psychepass.errors import UserError
from rollout_env.profile_records import Language
from rollout_env.proper_names import UPPER

if TYPE_CHECKING:
    from presidio_analyzer import AnalyzerEngine

INSTALL = "pip install 'psychepass[profiles]'"
# Presidio's kinds -> ours; what is found of another kind is left alone
KINDS = {
    "PERSON": "PERSON",
    "LOCATION": "PLACE",
    "ORGANIZATION": "ORGANISATION",
    "NAME": "NAME",  # of what or whom is not known
    "ADDRESS": "ADDRESS",
    "EMAIL_ADDRESS": "EMAIL",
    "URL": "LINK",
    "PHONE_NUMBER": "PHONE",
    "ACCOUNT": "ACCOUNT",
    "CREDIT_CARD": "CARD",
    "IBAN_CODE": "CARD",
    "IP_ADDRESS": "IP",
    "US_SSN": "ID",
    "UK_NINO": "ID",
    "CN_ID": "ID",
    "DATE_TIME": "DATE",
}
NAMES = ("PERSON", "PLACE", "ORGANISATION", "NAME")
CONTACTS = ("EMAIL", "LINK", "PHONE", "ACCOUNT", "CARD", "IP", "ID")  # what no profile may hold
PLACEHOLDER = re.compile(rf"\[(?:{'|'.join(sorted(set(KINDS.values())))})_\d+\]")
PHONE_REGIONS = ("US", "GB", "CN", "IN", "AU")
# a capitalised word to its end: McCarthy, O'Brien, Kovačić, not the 's behind it; East Asian writing is no part of it
ACCENT, EAST = r"\u0300-\u036f", r"\u2e80-\U0010ffff"
LETTERS = rf"(?:[^\W\d_{EAST}]|[{ACCENT}])+"
HAS_SMALL = rf"(?=(?:[{UPPER}{ACCENT}]|['’-](?=[{UPPER}])){{0,9}}[^\W\d_{UPPER}{EAST}])"
CAPITAL = rf"{HAS_SMALL}[{UPPER}](?:{LETTERS})?(?:-{LETTERS}|['’][{UPPER}]{LETTERS})*"
TITLED = re.compile(rf"\b(?:Mr|Mrs|Ms|Miss|Dr|Prof|Professor|Doctor|Aunt|Uncle)\.? ({CAPITAL}(?: {CAPITAL})?)")
INTRODUCED = re.compile(rf"\b(?:[Mm]y name is|[Nn]amed) ({CAPITAL}(?: {CAPITAL})?)")
GIVEN = re.compile(rf"\b({CAPITAL})(?=((?: {CAPITAL})?))")
SENTENCE_START = re.compile(r"(?:^|[.!?:;\n\"“]\s*)$")
# given names that are also common first words of a sentence
WORDS_TOO = re.compile(
    "Will|May|Mark|Grace|Hope|Joy|Faith|Rose|Summer|Dawn|Bill|Chase|Drew|Frank|Grant|Guy|Max|Pat|Rob|Sky|April|June|"
    "August|Christian|Charity|Patience|Angel|Melody|Carol|Art|Jean|Gene|Dale|Glen|Jay|Kay|Lane|Miles|Page|Ray|Rich|Sue|"
    "Ruby|Amber|Crystal|Virginia|Don|Dean|Norm|Victor|Stacy|Iris|Ivy|Lily|Holly|Heather|Penny|Mason|Hunter|Carter"
)
CN_ID = r"(?<!\d)\d{6}(?:19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?![\dXx])"
CN_ID_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
CN_DATE = r"(?:19|20)\d{2}年\d{1,2}月\d{1,2}[日号]"
MONTHS = (
    "January|February|March|April|May|June|July|August|September|October|November|December|"
    r"(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\.?"
)
DAY = r"(?:0?[1-9]|[12]\d|3[01])(?:st|nd|rd|th)?"
EN_DATE = rf"\b(?:(?:{MONTHS}) (?:{DAY}(?:,? \d{{4}})?|\d{{4}})|{DAY} (?:of )?(?:{MONTHS})(?:,? \d{{4}})?)\b"
ACCOUNT = (
    r"(?i)(?:(?<=微信号)|(?<=微信)|(?<=QQ号)|(?<=QQ)|(?<=wechat))(?: ?ID(?: is)?)?[是:： ]{0,3}"
    r"[A-Za-z0-9][A-Za-z0-9_-]{4,19}"
)
HANDLE = r"(?<![\w@.])@[A-Za-z0-9_]{3,30}(?![\w.]*@)"
STREET = (
    rf"\b\d{{1,5}}[A-Za-z]? (?:{CAPITAL} ){{1,3}}(?:Street|St|Road|Rd|Avenue|Ave|Lane|Ln|Drive|Dr|Close|Court|Way)\b"
)
CN_STREET = r"[\u4e00-\u9fff]{1,6}(?:路|街|大道|巷|弄)\d{1,5}号(?:\d{1,4}(?:室|栋|单元|楼))*"


class DeIdentifier:
    """`spacy_pipelines`: language -> name or path of an installed pipeline that finds persons, places, organisations.

    Raises:
        UserError: the libraries are not installed, or a pipeline cannot be loaded.
    """

    def __init__(self, spacy_pipelines: Mapping[Language, str] | None = None):
        self.pipelines = {lang: name for lang, name in (spacy_pipelines or {}).items() if name}
        self._engine = self._make_engine()

    def clean(self, text: str, language: Language, names: Sequence[str] = ()) -> tuple[str, Counter[str]]:
        """The text with placeholders, and how many different identifiers of each kind they stand for.

        `names` are known persons: they are found wherever they stand, whole or in part.
        """
        numbers: dict[tuple[str, str], int] = {}
        seen: Counter[str] = Counter()
        parts, at = [], 0
        for start, end, kind in self.find(text, language, names):
            key = (kind, " ".join(text[start:end].lower().split()))
            if key not in numbers:
                seen[kind] += 1
                numbers[key] = seen[kind]
            parts += [text[at:start], f"[{kind}_{numbers[key]}]"]
            at = end
        return "".join([*parts, text[at:]]), seen

    def contacts(self, text: str, language: Language) -> list[str]:
        """Kinds of contact or identity numbers that stand in a text, sorted."""
        return sorted({kind for _, _, kind in self.find(text, language, ()) if kind in CONTACTS})

    def find(self, text: str, language: Language, names: Sequence[str]) -> list[tuple[int, int, str]]:
        """Spans in order, none overlapping; the surer one wins, then the longer one.

        Where a less sure name reaches beyond a surer span, both are one: a row's "Anna" in "Anna Kowalski".
        """
        known = _known_names(names, language)
        kinds = sorted(KINDS.keys() & set(self._engine.get_supported_entities(language)))
        found = self._engine.analyze(text, language=language, entities=kinds, ad_hoc_recognizers=known)
        taken: list[tuple[int, int, str]] = []
        for r in sorted(found, key=lambda r: (-r.score, r.start - r.end, r.start)):
            span = (r.start, r.end, KINDS[r.entity_type])
            touched = [t for t in taken if t[0] < r.end and r.start < t[1]]
            if not touched:
                taken.append(span)
            elif span[2] in NAMES:
                taken = [t for t in taken if t not in touched] + [_union(touched, span)]
        return sorted(taken)

    def _make_engine(self) -> AnalyzerEngine:
        try:
            import spacy
            from presidio_analyzer import AnalyzerEngine, RecognizerRegistry
            from presidio_analyzer.nlp_engine import NerModelConfiguration, SpacyNlpEngine

            from rollout_env.recognizers import recognizers
        except ImportError as e:
            raise UserError(f"stage profiles needs the package {e.name} for de-identification: {INSTALL}") from e
        entities = NerModelConfiguration()
        labels = {**(entities.model_to_presidio_entity_mapping or {}), "FAC": "LOCATION"}  # buildings, airports
        engine = SpacyNlpEngine(ner_model_configuration=NerModelConfiguration(model_to_presidio_entity_mapping=labels))
        languages: tuple[Language, ...] = ("en", "zh")
        loaded: dict[str, Any] = {}
        for language in languages:
            name = self.pipelines.get(language)
            try:
                loaded[language] = spacy.load(name) if name else spacy.blank(language)
            except (OSError, ImportError) as e:
                reason = " ".join(str(e).split())[:200]
                raise UserError(f"spacy_pipelines.{language}: cannot load {name!r}: {reason}") from e
        engine.nlp = loaded
        registry = RecognizerRegistry(supported_languages=list(languages))
        for language in languages:
            for recognizer in recognizers(language, spacy_entities=language in self.pipelines):
                registry.add_recognizer(recognizer)
        return AnalyzerEngine(registry=registry, nlp_engine=engine, supported_languages=list(languages))


def _union(touched: Sequence[tuple[int, int, str]], name: tuple[int, int, str]) -> tuple[int, int, str]:
    """One span over all; the kind of the surest, but a contact stays one, because no profile may hold it."""
    kind = next((t[2] for t in touched if t[2] in CONTACTS), touched[0][2])
    spans = [*touched, name]
    return min(s[0] for s in spans), max(s[1] for s in spans), kind


def _known_names(names: Iterable[str], language: Language) -> list[Any]:
    from presidio_analyzer import Pattern, PatternRecognizer

    parts = {p for n in names for p in _name_parts(n, language)}
    if not parts:
        return []
    edge = r"\b" if language == "en" else ""
    alternatives = "|".join(re.escape(p) for p in sorted(parts, key=len, reverse=True))
    pattern = Pattern("known names", rf"{edge}(?:{alternatives}){edge}", 1.0)
    return [PatternRecognizer("PERSON", patterns=[pattern], supported_language=language, global_regex_flags=0)]


def _name_parts(name: str, language: Language) -> set[str]:
    """A name, and its parts: first and last, or of a Chinese name of three characters the given name."""
    if language == "zh":
        return {name, name[1:]} if len(name) == 3 else {name}
    return {name, *(p for p in name.split() if len(p) > 1 and p.rstrip(".") not in ("Mr", "Mrs", "Ms", "Dr"))}


def cn_id_is_valid(text: str) -> bool:
    """The check character of an 18-digit Chinese identity number (GB 11643)."""
    total = sum(int(c) * w for c, w in zip(text[:17], CN_ID_WEIGHTS, strict=True))
    return "10X98765432"[total % 11] == text[17].upper()

"""The recognizers of rollout_env/deidentify.py, as Presidio takes them. Imported only where Presidio is installed."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import tldextract
from faker import Faker
from presidio_analyzer import EntityRecognizer, Pattern, PatternRecognizer, RecognizerResult
from presidio_analyzer.predefined_recognizers import (
    CreditCardRecognizer,
    DateRecognizer,
    EmailRecognizer,
    IbanRecognizer,
    IpRecognizer,
    PhoneRecognizer,
    SpacyRecognizer,
    UkNinoRecognizer,
    UrlRecognizer,
    UsSsnRecognizer,
)

from rollout_env import deidentify as d
from rollout_env.chinese_names import chinese_names
from rollout_env.profile_records import Language
from rollout_env.proper_names import proper_names

SUFFIXES = tldextract.TLDExtract(cache_dir=None, suffix_list_urls=())  # the list it ships: Presidio would fetch one
ENTITIES = ["PERSON", "LOCATION", "ORGANIZATION"]
LOCALES = ("en_US", "en_GB", "en_IN")


class _Email(EmailRecognizer):
    def validate_result(self, pattern_text: str) -> bool:
        return bool(SUFFIXES(pattern_text).fqdn)


class _Url(UrlRecognizer):
    """Only what has a known suffix, and a scheme, a path or www: "home.it" is a missing space."""

    def validate_result(self, pattern_text: str) -> bool:
        plain = "/" not in pattern_text and not pattern_text.lower().startswith("www.")
        return bool(SUFFIXES(pattern_text).fqdn) and not (plain and SUFFIXES(pattern_text).suffix not in ("com", "org"))


class _ChineseId(PatternRecognizer):
    def validate_result(self, pattern_text: str) -> bool:
        return d.cn_id_is_valid(pattern_text)


class _EnglishNames(EntityRecognizer):
    """Persons by form of address, introduction, or a given name of the lists with the capitalised word after it."""

    def __init__(self) -> None:
        super().__init__(supported_entities=["PERSON"], supported_language="en", name="EnglishNames")

    def load(self) -> None:
        pass

    def analyze(self, text: str, entities: list[str], nlp_artifacts: Any = None) -> list[RecognizerResult]:
        given = english_names()
        spans = [m.span(1) for form in (d.TITLED, d.INTRODUCED) for m in form.finditer(text)]
        for m in d.GIVEN.finditer(text):
            starts, first = d.SENTENCE_START.search(text[: m.start()]), re.split("['’-]", m.group(1))[0]
            if not given.isdisjoint((m.group(1), first)) and not (starts and d.WORDS_TOO.fullmatch(first)):
                spans.append((m.start(), m.end(2) if m.group(2).strip() not in given else m.end(1)))
        return [RecognizerResult("PERSON", start, end, 0.8) for start, end in spans]


class _EnglishProperNames(EntityRecognizer):
    """Places, employers and other names of rollout_env/proper_names.py."""

    def __init__(self) -> None:
        kinds = ["LOCATION", "ORGANIZATION", "NAME"]
        super().__init__(supported_entities=kinds, supported_language="en", name="EnglishProperNames")

    def load(self) -> None:
        pass

    def analyze(self, text: str, entities: list[str], nlp_artifacts: Any = None) -> list[RecognizerResult]:
        return [RecognizerResult(kind, start, end, score) for start, end, kind, score in proper_names(text)]


class _ChineseNames(EntityRecognizer):
    """Persons, places and organisations of rollout_env/chinese_names.py."""

    def __init__(self) -> None:
        super().__init__(
            supported_entities=["PERSON", "LOCATION", "ORGANIZATION"], supported_language="zh", name="Jieba"
        )

    def load(self) -> None:
        pass

    def analyze(self, text: str, entities: list[str], nlp_artifacts: Any = None) -> list[RecognizerResult]:
        found = chinese_names(text, chinese_surnames())
        return [RecognizerResult(kind, start, end, score) for start, end, kind, score in found]


@cache
def english_names() -> frozenset[str]:
    """Given names of Faker's English locales."""
    return frozenset(n for locale in LOCALES for n in _person(locale).first_names)


@cache
def chinese_surnames() -> tuple[str, ...]:
    return tuple(_person("zh_CN").last_names)


def _person(locale: str) -> Any:
    return next(p for p in Faker(locale).get_providers() if ".person." in type(p).__module__)


def _pattern(kind: str, regex: str, score: float, language: Language, cls: type = PatternRecognizer) -> Any:
    patterns = [Pattern(kind.lower(), regex, score)]
    name = f"{kind}-{language}-{score}"
    return cls(kind, patterns=patterns, supported_language=language, name=name, global_regex_flags=re.MULTILINE)


def recognizers(language: Language, spacy_entities: bool) -> list[EntityRecognizer]:
    """All recognizers of a language; `spacy_entities` adds what its spaCy pipeline finds."""
    shared = (_Email, _Url, IpRecognizer, CreditCardRecognizer, IbanRecognizer, DateRecognizer)
    found: list[Any] = [cls(supported_language=language) for cls in shared]
    found.append(PhoneRecognizer(supported_language=language, supported_regions=d.PHONE_REGIONS))
    found += [_pattern("ACCOUNT", d.ACCOUNT, 0.7, language), _pattern("ACCOUNT", d.HANDLE, 0.5, language)]
    found.append(_pattern("CN_ID", d.CN_ID, 0.9, language, _ChineseId))
    if language == "en":
        found += [UsSsnRecognizer(), UkNinoRecognizer(), _EnglishNames(), _EnglishProperNames()]
        found += [_pattern("ADDRESS", d.STREET, 0.9, "en"), _pattern("DATE_TIME", d.EN_DATE, 0.9, "en")]
    else:
        found += [_ChineseNames()]
        found += [_pattern("ADDRESS", d.CN_STREET, 0.9, "zh"), _pattern("DATE_TIME", d.CN_DATE, 0.9, "zh")]
    if spacy_entities:
        found.append(SpacyRecognizer(supported_language=language, supported_entities=ENTITIES))
    return found

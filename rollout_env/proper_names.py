"""English names of places, employers and persons outside the lists, by capitals and the words around them.

A capitalised phrase in the middle of a sentence is a name, unless it is one of ORDINARY. What kind, the words before it
tell ("work at", "moved to"), a word of its own ("Bank"), or the gazetteer. At the start of a sentence, where every word
has a capital, the gazetteer and a word of its own decide. A name found once is found wherever it stands.

The gazetteer is libphonenumber's: the places of the world that have a telephone prefix, and the countries.
"""

from __future__ import annotations

import re
from functools import cache

import yaml

from rollout_env.banks import DATA

Found = tuple[int, int, str, float]  # start, end, Presidio's kind, score

LISTS = yaml.safe_load((DATA / "proper_names.yaml").read_text(encoding="utf-8"))
ORDINARY = frozenset(w for text in LISTS["ordinary"].values() for w in text.split())
ALWAYS = frozenset(LISTS["ordinary"]["always"].split())
STARTERS = frozenset(LISTS["starters"].split())
NATIONALITY = re.compile(
    r"(?:[a-z](?:ish|ese|ian|ians|can|cans)|Arabs?|Arabic|Greeks?|French|German|Germans|Dutch|Thai)$"
)
UPPER = "".join(c for c in map(chr, range(0x2000)) if c.isupper())  # of all alphabets that have capitals
WORD = rf"(?!I['’])[{UPPER}][\w&’'-]*[^\W_]"
LINK = r"(?:of|the|upon|de|del|la|le|der|von|van|&) "
PHRASE = re.compile(rf"(?:(?:St|Mt|Ft)\. )?{WORD}(?: (?:{LINK}){{0,2}}{WORD})*")
LISTING = re.compile(rf"(?:, {WORD})* and {WORD}(?! [A-Z])")  # "Doyle, Ross and Hill", of employers only
INSIDE = re.compile(r"[a-z][\"'”’)]? [\"'“‘(]?$")  # a sentence goes on here
GOES_ON = re.compile(r"['’]?s? [a-z]")
ORGANISATION = re.compile(rf"\b(?:{'|'.join(LISTS['organisations'].split())})\b")
WORKS = re.compile(
    rf"\b(?:{'|'.join(LISTS['working'])})\b[^.!?;\n]{{0,30}}? (?:at|for|with|by|from|to|into|in|of) "
    r"(?:the |a |an |my |our |their )?$|\b(?:joined|quit) (?:the )?$"
)
PLACED = re.compile(
    r"\b(?:in|from|to|near|around|outside|through|towards?|visit(?:ed|ing)?|across|via|behind) (?:the )?$"
)
PLACE_ENDING = re.compile(r"[a-z]{3}(?:ville|mouth|burgh|bury|borough|shire|chester|haven|stad)$")
SUBJECT = re.compile(
    r"\b(?:degrees?|major(?:ed|ing|s)?|minor(?:ed|ing|s)?|[Bb]achelor['’]?s?|[Mm]aster['’]?s?|diplomas?|PhD|courses?"
    r"|class(?:es)?|stud(?:y|ied|ies|ying)) (?:in |of )?$"
)
SENTENCE_END = re.compile(r"[.!?]['\"”’)]*\s*$")
POSSESSIVE = re.compile(r"['’]s$")
HEADING_WORDS = 8
CUE_CHARACTERS = 80


def proper_names(text: str) -> list[Found]:
    """Spans of names, none certain: 0.85 where words around or in it tell its kind, 0.45 without."""
    found: dict[tuple[int, int], Found] = {}
    for match in PHRASE.finditer(text):
        name = _name(text, *match.span(), after={end for _, end in found})
        if name:
            start, end, kind, score = name
            found[start, end] = (start, start + len(POSSESSIVE.sub("", text[start:end])), kind, score)
    surest = {text[start:end]: (kind, score) for start, end, kind, score in sorted(found.values(), key=lambda f: f[3])}
    for name, (kind, score) in surest.items():
        again = re.compile(rf"(?<![\w-]){re.escape(name)}(?![\w-])") if len(name) > 3 else re.compile("(?!)")
        found |= {m.span(): (*m.span(), kind, score) for m in again.finditer(text)}
    return list(found.values())


def _name(text: str, start: int, end: int, after: set[int]) -> Found | None:
    """The name in a capitalised phrase, if there is one; `after`: where names before it ended, which a list goes on."""
    before = text[max(0, start - CUE_CHARACTERS) : start]
    inside = bool(INSIDE.search(before)) or (before.endswith(", ") and start - 2 in after)
    at_work = bool(WORKS.search(before))
    while first := re.match(rf"({WORD}) ", text[start:end]):  # "On Monday", "Last Christmas"
        if first.group(1) not in ALWAYS and (inside or first.group(1) not in STARTERS):
            break
        start, inside = start + first.end(), True
    phrase = text[start:end]
    if all(_is_ordinary(word, inside, at_work) for word in phrase.split()):
        return None
    known = _plain(phrase) in places() or bool(PLACE_ENDING.search(_plain(phrase)))
    if at_work and not SUBJECT.search(before) and not (known and PLACED.search(before)):
        more = LISTING.match(text, end)
        return start, more.end() if more else end, "ORGANIZATION", 0.85
    if not known and (_is_heading(text, start) or SUBJECT.search(before)):
        return None
    if not inside and not (GOES_ON.match(text, end) and (known or " " in phrase)):
        return None
    if ORGANISATION.search(phrase):
        return start, end, "ORGANIZATION", 0.85
    if known or PLACED.search(before):
        return start, end, "LOCATION", 0.85 if inside else 0.6
    return start, end, "NAME", 0.45


def _is_heading(text: str, start: int) -> bool:
    """Whether a phrase stands in a heading or a form's field: few words in a line that does not end as a sentence."""
    begin, end = text.rfind("\n", 0, start) + 1, text.find("\n", start)
    line = text[begin : end if end >= 0 else len(text)]
    return len(line.split()) <= HEADING_WORDS and not SENTENCE_END.search(line)


def _is_ordinary(word: str, inside: bool, at_work: bool) -> bool:
    """Whether a capitalised word is no name here; `at_work` permits brands and short capitals ("at IBM")."""
    plain = _plain(word)
    if at_work:
        return plain in ALWAYS
    if plain in ORDINARY or (not inside and plain in STARTERS) or (plain.isupper() and len(plain) <= 5):
        return True
    return plain.islower() or (bool(NATIONALITY.search(plain)) and plain not in places())


def _plain(phrase: str) -> str:
    return POSSESSIVE.sub("", phrase).strip(".,;:!?\"'’")


@cache
def places() -> frozenset[str]:
    """English names of places with a telephone prefix, and of countries, without what stands behind a comma."""
    from phonenumbers.geodata import GEOCODE_DATA
    from phonenumbers.geodata.locale import LOCALE_DATA

    full = {names["en"] for names in GEOCODE_DATA.values() if "en" in names}
    full |= {names["aa"] for names in LOCALE_DATA.values() if "aa" in names}
    short = {part.strip() for name in full for part in re.split(r"[/,(]| - ", name)[:1]}
    return frozenset(p for p in short | set(LISTS["places"]) if len(p) > 2 and p[0].isupper() and p not in ORDINARY)

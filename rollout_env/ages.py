"""How old a row, or a text about its writer, says that somebody is; minors are refused by it (docs/profiles.md).

What cannot be read is not taken for an adult's age. A memory ("when I was 16") and the age of somebody else ("my
15-year-old son") say nothing about the writer.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from rollout_env.minors import ADULT_YEARS

OLDEST_YEARS = 120
UNCLEAR_AGE = "age is given but not clear"

# --- the age cell of a row
NO_AGE = re.compile(r"|-1(?:\.0)?|nan|null|<na>|[?-]+")  # how programs write that there is none
NUMBER = re.compile(r"\d+(?:\.\d+)?")
EXACT = re.compile(r"(?:aged? )?\d+(?:\.0+)?[ -]*(?:years?|yrs?|y/?o|周?岁)?(?:[ -]old| of age)?")
PART_OF_YEAR = re.compile(r"(?<!\d)\d+(?:\.\d+)?[ -]*(?:months?|weeks?|days?|个?月|周(?!岁)|天)")
AT_MOST = re.compile(r"under|below|less|younger|up to|at most|max|[<≤]|以下|以内|不满|未满|不到|小于")
YOUNG_GROUP = re.compile(
    r"child|\bkids?\b|\b(?:pre-?)?teen|adolescen|minor|youth|juvenile|infant|toddler|school|\bno[nt]\b"
    r"|未成年|儿童|少年|孩"
)
ADULT_GROUP = re.compile(
    r"adult|middle[- ]?age|elder|\bolder\b|senior|retire|pension|(?:twent|thirt|fort|fift|sixt|sevent|eight|ninet)ies"
    r"|成年|中年|老年|老人"
)


class Age(NamedTuple):
    """`years` where one number is given, or the smallest is a minor's; `is_child`: the age group says so."""

    years: int | None = None
    is_child: bool = False
    is_unclear: bool = False


def read_age(cell: str) -> Age:
    """The age in a cell such as "34", "17.0", "16-17" or "Adult"; of several numbers the smallest counts."""
    text = cell.strip().lower()
    if NO_AGE.fullmatch(text):
        return Age()
    numbers = [float(n) for n in NUMBER.findall(PART_OF_YEAR.sub("", text))]
    if not numbers and not PART_OF_YEAR.search(text):
        is_child = bool(YOUNG_GROUP.search(text))
        return Age(is_child=is_child, is_unclear=not is_child and not ADULT_GROUP.search(text))
    if not numbers or max(numbers) > OLDEST_YEARS or AT_MOST.search(text):
        return Age(is_unclear=True)
    youngest = int(min(numbers))
    return Age(youngest if youngest < ADULT_YEARS or EXACT.fullmatch(text) else None)


# --- what a text says of its writer; a pattern's one group is the number
IN_WORDS = {"thirteen": 13, "fourteen": 14, "fifteen": 15, "sixteen": 16, "seventeen": 17}
IN_CHINESE = {"十": 10} | {f"十{c}": 11 + i for i, c in enumerate("一二三四五六七八九")}
TEENS = rf"(1\d|{'|'.join(IN_WORDS)})"
I_AM = (
    r"(?<!like )(?<!as if )(?<!as though )(?<!thinks )\bi(?:['’]?m| am)"
    r"(?: only| just| still| now| currently| already| barely| almost| nearly| turning| aged?)?"
)
OLD = (
    r"[- ]?(?:years?[- ]old|yrs?[- ]old|years? of age|yo|y/o)\b"
    r"(?! (?:when|whenever|at the time|again|inside|at heart)\b)"
)
PARENT = r"(?: \w+)?['’]s (?:moth|mom|mum|fath|dad|parent|teach|aunt|uncle|grand|step|guard|carer|sis|bro)"
# where a sentence goes on so, "as a 15-year-old" is a memory
PAST = (
    r",?(?: [\w'’]+){0,2} (?:was|were|had|did|didn['’]?t|wasn['’]?t|used to|went|knew|saw|came|began|took|ran)\b"
    r"|,? I (?:left|lost|told|made|found|met|felt|thought|got|could|(?!need|feed|bleed)\w+ed)\b"
)
# a number goes on so where it is an age: "I'm 16.", "I'm 16 and"; not "I am 17 kilos heavier", "I'm 12 years sober"
PART = r"and\b(?! a half (?:weeks?|months?|days?|hours?|minutes?|miles?))"
GOES_ON = (
    r"(?![.,:–—]\d)(?= ?[,.;!?)—–\n]|$| (?:years?(?=[,.;!?)]|$| (?:and|now)\b)"
    rf"|{PART}|(?:now|but|so|because|female|male|girl|boy|student)\b))"
)
ENGLISH = (
    rf"{I_AM} (\d\d?){OLD}",
    rf"{I_AM} {TEENS}{GOES_ON}",
    rf"{I_AM} (?:an? (?:[a-z]+ly )?(?:[a-z]+ )?)?{TEENS}{OLD}(?!{PARENT})",
    rf"{I_AM} an? (\d){OLD} (?:girl|boy|child|kid|student)\b(?!['’]s)",
    rf"(?:^|[.!?;:\n]\s{{0,3}})as an? (?:[a-z]+ )?{TEENS}{OLD}(?!{PARENT}|{PAST})",
    rf"\bi(?:['’]ve| have)? (?:only )?(?:just|recently) turned {TEENS}\b(?! (?:when|that|at the time)\b)",
    rf"\bmy age is {TEENS}\b",
    r"\bi ?\((?:[fm] ?)?(1\d) ?(?:f|m|nb)?\)",
    r"\b(1[0-7])[- ]year[- ]old (?:girl|boy|student|teen)",  # also in a description of a client
)
ZH_TEENS = r"(1\d|十[一二三四五六七八九]?)"
MEMORY = "".join(
    f"(?<!{w})" for w in ("那年", "当年", "那时", "当时", "时候", "时", "在", "从", "当", "到", "比", "前", "的")
)
NOW = "(?:今年|现在|现年)"
STOPS = r"(?=[，。！？；、,.!?;)）\s]|$)"
CHINESE = (
    rf"{MEMORY}我{NOW}?(?:才|刚|刚满|刚刚|只有|是)? ?{ZH_TEENS} ?周?岁(?:半|了)?{STOPS}",
    rf"我{NOW}(?:才|刚|刚满|只有)? ?(\d) ?周?岁",
    rf"我是(?:一?[个名位])? ?{ZH_TEENS} ?周?岁的?(?:[高初]中|中学|学生|女生|男生|女孩|男孩|少[年女])"
    r"(?![^，。,.]{0,3}(?:的|和|妈|爸|家长))",
    rf"{NOW}(?:才|刚)?(1[0-7])岁",
)
SAYS = re.compile("|".join((*ENGLISH, *CHINESE)), re.I)


def stated_age(text: str) -> int | None:
    """The lowest age under 18 that a text states of its writer, or None."""
    found = (next(g for g in m.groups() if g) for m in SAYS.finditer(text))
    return min((y for y in map(_years, found) if y < ADULT_YEARS), default=None)


def _years(number: str) -> int:
    return IN_WORDS.get(number.lower()) or IN_CHINESE.get(number) or int(number)

"""Chinese names of persons, places and employers, from the words and parts of speech that jieba finds.

jieba's dictionary knows the well-known ones. Others are put together: a word that is no common one before "镇", "小区",
"医院" or "公司", as far back as the words belong to the name; and what stands between "在" and "上班".
"""

from __future__ import annotations

import re
from functools import cache
from typing import NamedTuple

import yaml

from psychepass.words import HAN, jieba
from rollout_env.banks import DATA

Found = tuple[int, int, str, float]  # start, end, Presidio's kind, score

LISTS = {k: frozenset(v.split()) for k, v in yaml.safe_load((DATA / "chinese_names.yaml").read_text("utf-8")).items()}
KINDS = {"ns": "LOCATION", "nt": "ORGANIZATION"}
TITLES = ("老师", "医生", "先生", "女士", "阿姨", "叔叔", "教授", "主任", "经理")
NAME_FLAGS = ("nr", "ns", "nt", "nz", "ng", "zg", "j", "eng", "x")  # of words that are likely part of a name
PART_FLAGS = (*NAME_FLAGS, "n", "a", "b", "s", "vn", "k", "f", "g", "h")
COMMON_FREQUENCY = 300  # in jieba's dictionary; a noun that is rarer may be a name
DIVISIONS = tuple("市县区镇乡村")  # of the country
MOST_CHARACTERS = 14
NUMBERED = re.compile(r"第[一二三四五六七八九十]+$")
PEOPLES = "壮 回 白 彝 傣 藏 苗 侗 羌 布依 土家 蒙古 朝鲜 哈尼 景颇 傈僳 哈萨克 柯尔克孜"
PROVINCE = re.compile(rf"省|市|州|地区|盟|自治|维吾尔|(?:{'|'.join(PEOPLES.split())})族")


class Word(NamedTuple):
    text: str
    flag: str
    start: int

    @property
    def end(self) -> int:
        return self.start + len(self.text)


def chinese_names(text: str, surnames: tuple[str, ...]) -> list[Found]:
    """Spans of names, none certain; a person needs one of the surnames or a form of address."""
    words = _words(text)
    found: list[Found] = []
    for i, word in enumerate(words):
        kind = "PERSON" if word.flag.startswith("nr") and _is_person(word.text, surnames) else KINDS.get(word.flag)
        if word.text in regions() or (word.flag.startswith("nr") and len(word.text) > 2 and word.text[-1] in DIVISIONS):
            kind = "LOCATION"
        if kind and word.text not in LISTS["no_name"]:
            found.append((word.start, word.end, kind, 0.6))
        if made := _composed(words, i):
            found.append(made)
        if word.text in LISTS["before_work"] and (employer := _employer(words, i + 1)):
            found.append(employer)
    return found


def _words(text: str) -> list[Word]:
    words, at = [], 0
    for pair in jieba().posseg.cut(text):
        words.append(Word(pair.word, pair.flag, at))
        at += len(pair.word)
    return words


def _is_person(word: str, surnames: tuple[str, ...]) -> bool:
    if word.endswith(TITLES):
        return True
    return 2 <= len(word) <= 4 and (word[0] in "小阿老" or word.startswith(surnames))


def _composed(words: list[Word], last: int) -> Found | None:
    """A name that ends with the word `last`, such as 青石镇 or 红旗机械厂."""
    kind = _kind_of_ending(words[last].text)
    if kind is None:
        return None
    first, ending = last, words[last].text
    in_full = ending.endswith("有限公司")  # a name stands before it, whatever its words
    while first and words[last].end - words[first - 1].start <= MOST_CHARACTERS:
        word = words[first - 1]
        if not (_is_part(word) or (in_full and word.flag in ("v", "m", "q") and word.text not in LISTS["never"])):
            break
        first -= 1
    before = [w for w in words[first:last] if w.text not in LISTS["generic"]]
    short = len(before) == 1 and len(before[0].text) == 1 and ending in DIVISIONS
    if not (any(map(_is_telling, before)) or (before and (in_full or short))):
        return None
    return words[first].start, words[last].end, kind, 0.85


def _kind_of_ending(word: str) -> str | None:
    if word in LISTS["place_endings"]:
        return "LOCATION"
    if word in LISTS["employer_endings"] or (len(word) > 2 and word.endswith(("公司", "厂", "集团"))):
        return "ORGANIZATION"
    return "LOCATION" if len(word) > 1 and word[-1] in "村镇" and word not in LISTS["generic"] else None


def _is_part(word: Word) -> bool:
    if word.text in LISTS["never"]:
        return False
    return bool(NUMBERED.match(word.text)) or (word.flag.startswith(PART_FLAGS) and bool(HAN.match(word.text)))


def _is_telling(word: Word) -> bool:
    """Whether a word makes a name of what follows: it is a name, a number, or no common word."""
    if word.text in LISTS["generic"] or word.text in LISTS["never"]:
        return False
    if NUMBERED.match(word.text) or word.flag.startswith(NAME_FLAGS) or word.flag == "s":
        return True
    return (jieba().dt.FREQ.get(word.text) or 0) < COMMON_FREQUENCY


def _employer(words: list[Word], first: int) -> Found | None:
    """What stands between "在" and "上班", "的同事" and the like, if a word of it is a name."""
    last = first
    while last < len(words) and _is_part(words[last]) and words[last].end - words[first].start <= MOST_CHARACTERS:
        last += 1
    if last == first or last == len(words) or not any(_is_telling(w) for w in words[first:last]):
        return None
    after = words[last].text + (words[last + 1].text if last + 1 < len(words) else "")
    if not after.startswith(tuple(LISTS["work"])):
        return None
    return words[first].start, words[last - 1].end, "ORGANIZATION", 0.85


@cache
def regions() -> frozenset[str]:
    """Provinces, cities and countries as libphonenumber names them, without what kind they are."""
    from phonenumbers.geodata import GEOCODE_DATA
    from phonenumbers.geodata.locale import LOCALE_DATA

    full = {names["zh"] for names in GEOCODE_DATA.values() if "zh" in names}
    countries = {names["zh"] for names in LOCALE_DATA.values() if "zh" in names}
    parts = {part for name in full for part in PROVINCE.split(name)}
    return frozenset(p for p in parts | countries if len(p) > 1 and HAN.match(p)) - LISTS["generic"]

"""What counts as a word, in English and in Chinese. The one place that knows jieba, which finds Chinese words.

jieba is imported at the first Chinese text: it reads a dictionary for about a second.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache, lru_cache
from typing import Any, Literal

from psychepass.errors import UserError

HAN = re.compile(r"[\u4e00-\u9fff]")
HAN_RUN = re.compile(r"[\u4e00-\u9fff]+")
LATIN = re.compile(r"[A-Za-z]")


def words(text: str) -> list[str]:
    """Lower-case words with their apostrophes; Chinese words as jieba parts them. Punctuation is none.

    For counts, and for runs of words that two texts share.

    Raises:
        UserError: the text holds Chinese and jieba is not installed.
    """
    return re.findall(r"[a-z0-9']+|[\u4e00-\u9fff]+", spaced(text.lower()))


def signs(text: str) -> list[str]:
    """As `words`, but each Chinese character for itself: for what stands in a line, however its words are parted."""
    return re.findall(r"[a-z0-9']+|[\u4e00-\u9fff]", text.lower())


def spaced(text: str) -> str:
    """The text with spaces around its Chinese words; a text without Chinese as it is."""
    return HAN_RUN.sub(lambda run: f" {' '.join(_parted(run.group()))} ", text)


def word_count(text: str) -> int:
    """Words between white space; in a text with Chinese, its `words`."""
    return len(words(text)) if HAN.search(text) else len(text.split())


def runs(texts: Iterable[str], length: int) -> set[str]:
    """All runs of `length` words in a row, each within one text."""
    spoken = [words(text) for text in texts]
    return {" ".join(ws[i : i + length]) for ws in spoken for i in range(len(ws) - length + 1)}


def language_of(texts: Iterable[str]) -> Literal["en", "zh"]:
    """zh where Chinese characters outnumber a quarter of the Latin letters: a Chinese word has two of them, an
    English one five, and a Chinese text may name English things."""
    han = latin = 0
    for text in texts:
        han, latin = han + len(HAN.findall(text)), latin + len(LATIN.findall(text))
    return "zh" if 4 * han > latin else "en"


@lru_cache(maxsize=100_000)
def _parted(run: str) -> tuple[str, ...]:
    return tuple(jieba().lcut(run))


@cache
def jieba() -> Any:
    """The module, silenced.

    Raises:
        UserError: it is not installed.
    """
    try:
        import jieba as module
        import jieba.posseg  # its tagger, for rollout_env/recognizers.py
    except ImportError as e:
        raise UserError(f"Chinese text needs the package {e.name}: pip install jieba==0.42.1") from e
    module.setLogLevel(60)
    return module

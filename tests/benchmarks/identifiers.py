"""What de-identification finds of places and employers, on sentences of our own (tests/data/identifiers.yaml).

Each sentence is filled with names: of the file, and made up by Faker. A name is found where no capital
and no Chinese character of it is left. Too much is what is replaced beside it, and any placeholder
in a sentence without a name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import yaml
from faker import Faker

from psychepass.stats import Interval, exact_binomial, share_interval
from psychepass.words import HAN
from rollout_env.deidentify import DeIdentifier
from rollout_env.profile_records import Language
from rollout_env.profile_seeds import LOCALES
from tests.benchmarks.figures import Figure
from tests.conftest import ROOT

Half = Literal["tuning", "test"]
LISTED, MADE_UP = 4, 2  # names a sentence
LANGUAGES: tuple[Language, ...] = ("en", "zh")


class Filled(NamedTuple):
    """A sentence with one name in it, from `start` to `end`."""

    kind: str
    template: str
    text: str
    start: int
    end: int
    made_up: bool


def sentences() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "tests" / "data" / "identifiers.yaml").read_text(encoding="utf-8"))


def filled(language: Language, half: Half, quick: bool = False) -> Iterator[Filled]:
    """Each template with several names, the same ones every time; `quick`: a third of the templates."""
    own = sentences()[language]
    faker = Faker(LOCALES[language])
    faker.seed_instance(f"{language} {half}")
    for kind, make in (("place", faker.city), ("employer", faker.company)):
        listed, templates = own["names"][half][kind], own[half][kind]
        for i, template in enumerate(templates):
            names = [(listed[(LISTED * i + k) % len(listed)], False) for k in range(LISTED)]
            names += [(make(), True) for _ in range(MADE_UP)]
            if quick and i % 3:
                continue
            at = template.index("{")
            for name, made_up in names:
                text = template.replace(f"{{{kind}}}", name)
                start = at + (len("the ") if name.startswith("the ") else 0)
                yield Filled(kind, template, text, start, at + len(name), made_up)


def measure(tool: DeIdentifier, language: Language, half: Half = "test", quick: bool = False) -> list[Figure]:
    """Shares with 95 % intervals over templates, which are n: names of a template are no independent cases."""
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for case in filled(language, half, quick):
        spans = [(start, end) for start, end, _ in tool.find(case.text, language, ())]
        left = set(range(case.start, case.end)) - {i for s, e in spans for i in range(s, e)}
        beside = sum(not case.start <= i < case.end for s, e in spans for i in range(s, e))
        gone = not any(case.text[i].isupper() or HAN.match(case.text[i]) for i in left)  # "and" is no name
        for name in (case.kind, f"{case.kind}, {'made up' if case.made_up else 'listed'}"):
            found[f"{name}: found"][case.template].append(gone)
        found["other characters replaced"][case.template].append(beside / (len(case.text) - case.end + case.start))
    figures = [
        _figure(f"{language}: {name}", share_interval([sum(v) / len(v) for v in of.values()]))
        for name, of in sorted(found.items())
    ]
    plain = sentences()[language][half]["plain"]
    touched = sum(bool(tool.find(text, language, ())) for text in plain)
    return [*figures, _figure(f"{language}: sentences without a name, touched", exact_binomial(touched, len(plain)))]


def _figure(name: str, found: Interval) -> Figure:
    return Figure(name, found.value, found.low, found.high, found.n)


def missed(tool: DeIdentifier, language: Language) -> list[str]:
    """Of the tuning half: sentences whose name is not found whole, or where more is replaced. To improve on."""
    told = []
    for case in filled(language, "tuning"):
        spans = [(start, end) for start, end, _ in tool.find(case.text, language, ())]
        if spans != [(case.start, case.end)]:
            told.append(f"{case.text[case.start : case.end]} | {tool.clean(case.text, language)[0]}")
    for text in sentences()[language]["tuning"]["plain"]:
        if tool.find(text, language, ()):
            told.append(f"plain | {tool.clean(text, language)[0]}")
    return told

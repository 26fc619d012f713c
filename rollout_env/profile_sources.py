"""Where seeds of client profiles come from: a text file, imported character sets, or whole profiles.

An imported set is a table of rows (JSON, JSON lines, tab-separated) and the fields of a row that make up a seed.
Fields that describe means or plans of self-harm, and dialogue, are left out. Files are read where they are and
copied nowhere.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from psychepass import records
from psychepass.completion import whole
from psychepass.config import Config, load
from psychepass.errors import UserError
from psychepass.schema import Profile
from rollout_env.ages import read_age
from rollout_env.profile_records import Gender, Language, Origin

Kind = Literal["text", "profiles", "patienthub", "vera_mh", "psychagent", "cactus"]
UNKNOWN = re.compile(r"not specified|cannot be identified|unknown|unclear|n/?a|none|未提及|不详|无|", re.I)


class Fields(Config):
    """Dotted paths into a row; each of `text` becomes a line of the seed under its own name."""

    text: list[str]
    name: str = ""
    age: str = ""
    gender: str = ""
    language: Language = "en"


class Sets(Config):
    """rollout_env/data/imported_sets.yaml: kind -> format -> fields."""

    patienthub: dict[str, Fields]
    vera_mh: dict[str, Fields]
    psychagent: dict[str, Fields]
    cactus: dict[str, Fields]


@cache
def imported_sets() -> Sets:
    return load(Sets, Path(__file__).parent / "data" / "imported_sets.yaml")


CACTUS_LINE = r"^\s*{}:\s*(.+)$"


class SourceEntry(Config):
    """A file of seeds (patienthub: also the folder of its files). `licence` is kept on every record made of it.

    `language` belongs to kind text, whose seeds stand apart by empty lines or, where there are none, one a line.
    """

    kind: Kind
    path: str
    licence: str = Field(min_length=1)
    language: Language = "en"

    @model_validator(mode="after")
    def _check_language(self) -> SourceEntry:
        if self.language != "en" and self.kind != "text":
            raise ValueError(f"language belongs to kind text; the language of {self.kind} is known")
        return self

    def files(self) -> list[Path]:
        """Raises UserError where there is nothing to read."""
        path = Path(self.path)
        if self.kind == "patienthub" and path.is_dir():
            found = sorted(path.glob("characters_*.json"))
            if not found:
                raise UserError(f"{path}: holds no characters_*.json of PatientHub")
            return found
        if not path.is_file():
            raise UserError(f"{path}: no such file; kind {self.kind} reads one")
        return [path]


class RawSeed(NamedTuple):
    """A row as it was read. `names` are those that the row itself gives; `is_child` and `is_unclear`: see ages.Age."""

    origin: Origin
    language: Language
    text: str
    age: int | None = None
    gender: Gender | None = None
    names: tuple[str, ...] = ()
    is_child: bool = False
    is_unclear: bool = False
    profile: Profile | None = None


def read_seeds(entry: SourceEntry) -> list[RawSeed]:
    """All rows of a source, in order.

    Raises:
        UserError: a missing or empty file, a row without any of the fields: file, row and fields.
    """
    found = [seed for file in entry.files() for seed in _read(entry, file)]
    if not found:
        raise UserError(f"{entry.path}: holds no seed")
    return found


def _read(entry: SourceEntry, file: Path) -> Iterator[RawSeed]:
    if entry.kind == "text":
        yield from _read_text(entry, file)
    elif entry.kind == "profiles":
        for row, p in enumerate(records.read(file, Profile), start=1):
            origin = _origin(entry, file, row)
            yield RawSeed(origin, p.language, profile_text(p), p.age, p.gender, (p.name,), profile=p)
    else:
        fields = _fields(entry.kind, file)
        for number, row in enumerate(_rows(file), start=1):
            where = f"{file}, row {number}"
            if not isinstance(row, dict):
                raise UserError(f"{where}: is a {type(row).__name__}; {entry.kind} has objects")
            if entry.kind == "cactus":
                row = _intake(row, where)
            yield _seed(row, fields, _origin(entry, file, number), where)


def profile_text(profile: Profile) -> str:
    """All that a profile says of the client, line by line; for similarity, shared words and lint."""
    skip = {"id", "schema_version", "profile_id", "language", "human_verified", "name", "gender", "age", "topic"}
    return "\n".join(_flat(profile.model_dump(mode="json", exclude=skip)))


def _origin(entry: SourceEntry, file: Path, row: int) -> Origin:
    return Origin(kind=entry.kind, file=file.name, row=row, licence=entry.licence)


def _content(file: Path) -> str:
    """The text with \\n alone between lines. `str.splitlines` would also part it at U+2028 and the like."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise UserError(f"{file}: not UTF-8 ({e.reason} at byte {e.start})") from e


def _read_text(entry: SourceEntry, file: Path) -> Iterator[RawSeed]:
    text = _content(file)
    parts = re.split(r"\n\s*\n", text.strip()) if re.search(r"\n\s*\n", text.strip()) else text.split("\n")
    for row, part in enumerate((p for p in parts if p.strip()), start=1):
        yield RawSeed(_origin(entry, file, row), entry.language, " ".join(part.split()))


def _fields(kind: str, file: Path) -> Fields:
    formats: dict[str, Fields] = getattr(imported_sets(), kind)
    if kind != "patienthub":
        return next(iter(formats.values()))
    name = file.stem.removeprefix("characters_")
    if name not in formats:
        known = ", ".join(f"characters_{n}.json" for n in formats)
        raise UserError(f"{file}: no known format of PatientHub; permitted: {known}")
    return formats[name]


def _rows(file: Path) -> list[Any]:
    text = _content(file)
    if file.suffix == ".tsv":
        try:
            return list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t"))
        except csv.Error as e:
            raise UserError(f"{file}: not tab-separated values ({e})") from e
    try:
        lines = file.suffix == ".jsonl"
        rows = whole([json.loads(line) for line in text.split("\n") if line] if lines else json.loads(text))
    except RecursionError as e:
        raise UserError(f"{file}: not JSON (nested too deeply)") from e
    except ValueError as e:
        raise UserError(f"{file}: not JSON ({e})") from e
    if not isinstance(rows, list):
        raise UserError(f"{file}: holds a {type(rows).__name__}; a list of rows is needed")
    return rows


def _intake(row: dict[str, Any], where: str) -> dict[str, Any]:
    """A Cactus row: its intake form begins with the lines Name:, Age:, Gender:, each followed by its value."""
    form = pick(row, "AI_client.intake_form")
    if not form:
        raise UserError(f"{where}: has no AI_client.intake_form")
    found: dict[str, Any] = {"intake_form": form}
    for name in ("Name", "Age", "Gender"):
        match = re.search(CACTUS_LINE.format(name), form, re.M | re.I)
        found[name] = match.group(1) if match else ""
    return found


def _seed(row: dict[str, Any], fields: Fields, origin: Origin, where: str) -> RawSeed:
    lines = [f"{path.split('.')[-1]}: {value}" for path in fields.text if (value := pick(row, path))]
    if not lines:
        raise UserError(f"{where}: has none of the fields {', '.join(fields.text)}")
    name, age = pick(row, fields.name), read_age(pick(row, fields.age))
    return RawSeed(
        origin,
        fields.language,
        "\n".join(lines),
        age=age.years,
        gender=_gender(pick(row, fields.gender)),
        names=(name,) if name else (),
        is_child=age.is_child,
        is_unclear=age.is_unclear,
    )


def pick(row: Any, path: str) -> str:
    """The value at a dotted path as text, lists and objects flattened; empty where it is absent or unknown."""
    for part in path.split(".") if path else ():
        row = row.get(part) if isinstance(row, dict) else None
    parts = _flat(row) if path else []
    return "; ".join(p for p in parts if not UNKNOWN.fullmatch(p.strip()))


def _flat(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [t for v in value.values() for t in _flat(v)]
    if isinstance(value, list | tuple):
        return [t for v in value for t in _flat(v)]
    return [] if value is None or isinstance(value, bool) else [str(value).strip()]


def _gender(text: str) -> Gender | None:
    word = text.lower()
    if word.startswith(("female", "woman", "she", "女")):
        return "female"
    if word.startswith(("male", "man", "he/", "男")):
        return "male"
    return "nonbinary" if word.startswith(("nonbinary", "non-binary", "they")) else None

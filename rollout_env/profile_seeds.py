"""The first step of stage `profiles`: rows of all sources, refused or de-identified."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from psychepass.errors import UserError
from psychepass.schema import Failure, content_hash
from rollout_env.deidentify import DeIdentifier
from rollout_env.profile_draft import faults, refusal
from rollout_env.profile_records import Gender, Language, Seed
from rollout_env.profile_sources import RawSeed, SourceEntry, read_seeds

STAGE = "profiles: seeds"
LOCALES: dict[Language, str] = {"en": "en_US", "zh": "zh_CN"}


def make_seeds(
    sources: Sequence[SourceEntry],
    language: Language | None,
    allow_minors: bool,
    seed: int,
    deidentifier: DeIdentifier,
) -> tuple[list[Seed], list[Failure]]:
    """Seeds without identifiers, and the refused rows, both in the order of the sources.

    `language` is that of the profiles to come (None: the seed's own), in which the fictional names are.

    Raises:
        UserError: see read_seeds; or a profile id that stands twice.
    """
    raw = [row for entry in sources for row in read_seeds(entry)]
    namer = Namer(seed)
    seeds, refused = [], []
    for row in tqdm(raw, desc="seeds", unit="seed", disable=len(raw) < 200):
        reason = refusal(row, allow_minors)
        if not reason and row.profile:
            reason = "; ".join(faults(row.profile, allow_minors, deidentifier))
        if reason:
            refused.append(Failure(stage=STAGE, subject=_place(row), reason=reason))
        else:
            seeds.append(_seed(row, language or row.language, namer, deidentifier))
    if twice := sorted(i for i, n in Counter(s.profile_id for s in seeds).items() if n > 1):
        raise UserError(f"profile_id {', '.join(twice)} stands twice among the sources; each id is permitted once")
    return seeds, refused


def _seed(row: RawSeed, language: Language, namer: Namer, deidentifier: DeIdentifier) -> Seed:
    if row.profile:
        whole = row.profile.model_copy(update={"human_verified": False})
        known: dict[str, Any] = {"name": whole.name, "gender": whole.gender, "text": row.text, "replaced": {}}
        return Seed(origin=row.origin, language=whole.language, age=whole.age, profile=whole, **known)
    text, replaced = deidentifier.clean(row.text, row.language, row.names)
    gender, name = namer.name(language, row.gender, _place(row))
    known = {"name": name, "gender": gender, "text": text, "replaced": dict(sorted(replaced.items()))}
    return Seed(origin=row.origin, language=row.language, age=row.age, **known)


def _place(row: RawSeed) -> str:
    return f"{row.origin.kind} {row.origin.file} row {row.origin.row}"


class Namer:
    """Fictional names, none given twice; the same for the same seed and place."""

    def __init__(self, seed: int):
        from faker import Faker

        self.seed, self._given = seed, set[str]()
        self._fakers = {language: Faker(locale) for language, locale in LOCALES.items()}

    def name(self, language: Language, gender: Gender | None, place: str) -> tuple[Gender, str]:
        """A gender where it is not known (female or male, evenly), and a name."""
        number = int(content_hash([self.seed, place])[:12], 16)
        gender = gender or random.Random(number).choice(("female", "male"))
        faker = self._fakers[language]
        faker.seed_instance(number)
        while True:
            first = getattr(faker, f"first_name_{gender}")()
            last = faker.last_name()
            name = f"{last}{first}" if language == "zh" else f"{first} {last}"
            if name not in self._given:
                self._given.add(name)
                return gender, name

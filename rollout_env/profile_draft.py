"""What the model is asked, and what its answer must hold before it counts as a profile or as scores.

A fault is a ValueError whose words are shown to the model once; `Declined` is an answer that is not asked again.
"""

from __future__ import annotations

import json
import re
from string import Template
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from psychepass.completion import whole
from psychepass.config import describe
from psychepass.schema import EventContext, FormativeExperience, Frozen, Named, Profile
from rollout_env.ages import UNCLEAR_AGE, stated_age
from rollout_env.deidentify import PLACEHOLDER, DeIdentifier
from rollout_env.minors import ADULT_YEARS, MINOR, MINOR_ROMANTIC, ROMANTIC, ROMANTIC_TOPIC
from rollout_env.profile_records import Language, Scores, Seed
from rollout_env.profile_sources import RawSeed, profile_text
from rollout_env.profiles import TOPICS
from rollout_env.prompts import read_prompt
from rollout_env.script_lint import METHOD

YOUNGEST_YEARS = 13  # schema.Profile, as the paper's pool
FENCE = re.compile(r"^```(?:json)?\s*\n(.*)\n\s*```$", re.S)
CHINESE = re.compile(r"[\u4e00-\u9fff]")
# the words exist only to refuse them
METHOD_ZH = re.compile("割腕|上吊|跳楼|跳河|跳桥|安眠药|烧炭|遗书|服毒|囤药|刀片")
Text = TypeVar("Text", bound=BaseModel)


class Declined(ValueError):
    """The answer says that there will be no profile."""


class Draft(Frozen):
    """What the model writes of a profile: Appendix A without name, gender and id, which are given to it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    age: int
    occupation: str = Field(min_length=1)
    topic: str
    subtopic: str = Field(min_length=1)
    personality: tuple[str, ...] = Field(min_length=1)
    situation: str = Field(min_length=20)
    event: EventContext
    emotion: str = Field(min_length=1)
    emotional_words: tuple[str, ...] = Field(min_length=1)
    core_drive: Named
    reaction_pattern: Named
    social_support: tuple[Named, ...] = Field(min_length=1)
    formative_experiences: tuple[FormativeExperience, ...] = Field(min_length=1)
    interests: tuple[str, ...] = Field(min_length=1)
    values: tuple[str, ...] = Field(min_length=1)
    facts: dict[str, str] = Field(min_length=3)


def refusal(seed: RawSeed, allow_minors: bool) -> str:
    """Why a seed is refused before any call; empty if it is not (notes of the protocol: minors)."""
    known = (age for age in (seed.age, stated_age(seed.text)) if age is not None)
    youngest = min(known, default=ADULT_YEARS)
    if youngest < YOUNGEST_YEARS:
        return f"younger than {YOUNGEST_YEARS}"
    if seed.is_unclear:
        return UNCLEAR_AGE
    if youngest >= ADULT_YEARS and not seed.is_child:
        return ""
    if not allow_minors:
        return MINOR
    return MINOR_ROMANTIC if ROMANTIC.search(seed.text) else ""


def expansion_prompt(seed: Seed, language: Language, allow_minors: bool) -> str:
    """`language` is the profile's, which may differ from the seed's."""
    rule = "minors" if allow_minors else "adults"
    age = str(seed.age) if seed.age is not None else {"en": "not known", "zh": "未知"}[language]
    return Template(read_prompt(f"profile_expand_{language}.txt")).substitute(
        name=seed.name,
        gender=seed.gender,
        age=age,
        age_rule=read_prompt(f"profile_{rule}_{language}.txt"),
        topics="; ".join(TOPICS),
        seed=seed.text,
    )


def scoring_prompt(profile: Profile) -> str:
    shown = profile.model_dump(
        mode="json", exclude={"id", "schema_version", "profile_id", "human_verified", "language"}
    )
    shown["facts"] = dict(sorted(shown["facts"].items()))  # as they are read back, so that a resume asks the same
    text = json.dumps(shown, ensure_ascii=False, indent=1)
    return Template(read_prompt(f"profile_score_{profile.language}.txt")).substitute(profile=text)


def read_profile(text: str, seed: Seed, language: Language, allow_minors: bool, deidentifier: DeIdentifier) -> Profile:
    """The model's answer as a Profile.

    Raises:
        Declined: the model says that the seed is about a minor, or it made one with a romantic theme.
        ValueError: anything that is not the object asked for, or breaks a rule of `faults`.
    """
    declined = re.fullmatch(r'\{\s*"declined"\s*:\s*"([^"]{1,100})"\s*\}', _plain(text))
    if declined:
        raise Declined(MINOR if "minor" in declined.group(1).lower() else f"declined: {declined.group(1)}")
    draft = _parse(text, Draft)
    given = {"profile_id": seed.profile_id, "name": seed.name, "gender": seed.gender, "language": language}
    if seed.age is not None and draft.age != seed.age:
        raise ValueError(f"age is {draft.age}; it must be the given {seed.age}")
    if not YOUNGEST_YEARS <= draft.age <= 120:
        raise ValueError(f"age is {draft.age}; permitted: {YOUNGEST_YEARS} to 120")
    profile = Profile.model_validate(draft.model_dump() | given)
    found = faults(profile, allow_minors, deidentifier)
    if found == [MINOR_ROMANTIC]:
        raise Declined(MINOR_ROMANTIC)
    if found:
        raise ValueError("; ".join(found))
    return profile


def faults(profile: Profile, allow_minors: bool, deidentifier: DeIdentifier) -> list[str]:
    """What a profile may not be or hold; also for profiles that come whole, and for those a person has edited."""
    text, found = profile_text(profile), []
    if profile.topic not in TOPICS:
        found.append(f"topic is {profile.topic!r}; permitted: {', '.join(TOPICS)}")
    if profile.age < ADULT_YEARS and not allow_minors:
        found.append(f"age is {profile.age}; permitted: {ADULT_YEARS} or more")
    elif profile.age < ADULT_YEARS and (profile.topic == ROMANTIC_TOPIC or ROMANTIC.search(text)):
        found.append(MINOR_ROMANTIC)
    if bad := METHOD.search(text) or METHOD_ZH.search(text):
        found.append(f"has the forbidden words {bad.group()!r}")
    if left := PLACEHOLDER.search(text):
        found.append(f"has the placeholder {left.group()!r}; invent something in its place")
    if contacts := deidentifier.contacts(text, profile.language):
        found.append(f"holds what looks like a contact or number of a person ({', '.join(contacts).lower()})")
    if bool(CHINESE.search(profile.situation)) != (profile.language == "zh"):
        found.append(f"must be written in {'Chinese' if profile.language == 'zh' else 'English'}")
    empty = [k for k, v in profile.model_dump(exclude={"facts"}).items() if v in ("", (), [])]
    if empty:
        found.append(f"{', '.join(empty)}: empty; every field of Appendix A is needed")
    return found


def read_scores(text: str) -> Scores:
    """Raises ValueError for anything that is not the object asked for."""
    return _parse(text, Scores)


def _plain(text: str) -> str:
    """The answer without the code fence that many models put around JSON."""
    fenced = FENCE.match(text.strip())
    return fenced.group(1) if fenced else text.strip()


def _parse(text: str, model: type[Text]) -> Text:
    try:
        tree = whole(json.loads(_plain(text)))
    except RecursionError as e:
        raise ValueError("not one JSON object: nested too deeply") from e
    except ValueError as e:
        raise ValueError(f"not one JSON object: {e}") from e
    try:
        return model.model_validate_json(json.dumps(tree))
    except ValidationError as e:
        raise ValueError(describe(e, model)[:1000]) from e

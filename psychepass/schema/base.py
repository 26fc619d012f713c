"""What all records share: dimensions and phases, hashes, the frozen base classes, what calls cost."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from enum import IntEnum, StrEnum
from functools import cached_property
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, computed_field, model_validator

SCHEMA_VERSION = 1
Split = Literal["train", "test", "dev", "heldout"]


class Category(StrEnum):
    """The paper's three groups of dimensions (section 3.1.2)."""

    ALLIANCE = "Alliance Building"
    TECHNIQUE = "Professional Technique"
    RELIABILITY = "Reliability Support"


class Dimension(StrEnum):
    """The 12 competency dimensions (PsychePass, Table 4), in the paper's order."""

    EMPATHY = "empathy"
    DISCERNMENT = "discernment"
    ENGAGEMENT = "engagement"
    SKILL = "skill"
    SUGGESTION = "suggestion"
    REFRAMING = "reframing"
    PROGRESSION = "progression"
    TRAUMA = "trauma"
    CRISIS = "crisis"
    ETHICS = "ethics"
    DIVERSITY = "diversity"
    MEMORY = "memory"

    @property
    def is_global(self) -> bool:
        """Judged on the whole session rather than on the turns that probe it."""
        return self in GLOBAL_DIMENSIONS

    @property
    def category(self) -> Category:
        position = list(Dimension).index(self)
        if position < 3:
            return Category.ALLIANCE
        return Category.TECHNIQUE if position < 8 else Category.RELIABILITY


GLOBAL_DIMENSIONS = (Dimension.EMPATHY, Dimension.ENGAGEMENT, Dimension.DIVERSITY)
LOCAL_DIMENSIONS = tuple(d for d in Dimension if d not in GLOBAL_DIMENSIONS)


class Phase(IntEnum):
    """The five phases of single-session therapy (PsychePass, section 3.1.3)."""

    ALLIANCE = 1
    PATTERN = 2
    CONFLICT = 3
    CORRECTION = 4
    INTEGRATION = 5


def content_hash(value: Any) -> str:
    """16 hex digits of SHA-256 over canonical JSON (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


class Frozen(BaseModel):
    """A value object: immutable, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Record(Frozen):
    """A line of a run's JSONL files. `id` is written with the record and checked when it is read."""

    KEY_FIELDS: ClassVar[tuple[str, ...]] = ()
    UNHASHED_FIELDS: ClassVar[frozenset[str]] = frozenset({"usage", "created"})

    schema_version: Literal[1] = SCHEMA_VERSION

    @computed_field
    @cached_property
    def id(self) -> str:
        exclude = self.UNHASHED_FIELDS | {"id"}
        return content_hash(self.model_dump(mode="json", exclude=set(exclude)))

    @cached_property
    def key(self) -> str:
        """Hash over the inputs (KEY_FIELDS): two records of one key answer the same request."""
        return content_hash(self.model_dump(mode="json", include=set(self.KEY_FIELDS)))

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """As pydantic's; the copy makes its own hashes, for its content may be another."""
        copied = super().model_copy(update=update, deep=deep)
        for name in ("id", "key"):
            vars(copied).pop(name, None)
        return copied

    @model_validator(mode="wrap")
    @classmethod
    def _check_stored_id(cls, data: Any, handler: Any) -> Self:
        stored = None
        if isinstance(data, dict) and "id" in data:
            data = dict(data)
            stored = data.pop("id")
        record = handler(data)
        if stored is not None and stored != record.id:
            raise ValueError(f"id {stored!r} does not match the content, whose id is {record.id!r}")
        return record


class Usage(Frozen):
    """What one or more model calls cost."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    seconds: float = 0.0
    cost_usd: float = 0.0

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            calls=self.calls + other.calls,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            seconds=round(self.seconds + other.seconds, 4),
            cost_usd=self.cost_usd + other.cost_usd,
        )

"""What the steps of stage `profiles` leave on disk between a seed and a selected client."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from psychepass.schema import Frozen, Profile, Record, Usage

Language = Literal["en", "zh"]
Gender = Literal["female", "male", "nonbinary"]


class Origin(Frozen):
    """Where a seed comes from: kind of set, file name, row (from 1), and the licence that the config states."""

    kind: str
    file: str
    row: int = Field(ge=1)
    licence: str


class Seed(Record):
    """A seed after de-identification; what was replaced is counted by kind, the originals are not kept.

    `name` and `gender` are the fictional client's (the seed's gender where it is known); `age` is the seed's, in
    years, or None. `profile` is set where the seed was a whole profile and needs no expansion.
    """

    KEY_FIELDS: ClassVar[tuple[str, ...]] = ("origin",)

    origin: Origin
    language: Language
    name: str
    gender: Gender
    age: int | None
    text: str
    replaced: dict[str, int]
    profile: Profile | None = None

    @property
    def profile_id(self) -> str:
        return self.profile.profile_id if self.profile else f"{self.origin.kind.replace('_', '-')}-{self.id[:8]}"


class Candidate(Record):
    """A profile that was made of a seed; `prompt_hash` is empty for one that came whole."""

    KEY_FIELDS: ClassVar[tuple[str, ...]] = ("seed_id",)

    seed_id: str
    origin: Origin
    profile: Profile
    prompt_hash: str = ""
    usage: Usage = Usage()


class Scores(Frozen):
    """How suited a profile is (PsychePass, section 3.1.1); 1 to 5, more is more.

    The paper names the three and sorts by them; the scale is ours. `romantic_or_sexual`: such a theme is there.
    """

    linguistic_complexity: int = Field(ge=1, le=5, strict=True)
    emotional_intensity: int = Field(ge=1, le=5, strict=True)
    counselling_relevance: int = Field(ge=1, le=5, strict=True)
    romantic_or_sexual: bool = Field(strict=True)

    @property
    def quality(self) -> float:
        """The mean of the three."""
        return (self.linguistic_complexity + self.emotional_intensity + self.counselling_relevance) / 3


class Scored(Record):
    """The scores of one profile."""

    KEY_FIELDS: ClassVar[tuple[str, ...]] = ("profile_id",)

    profile_id: str
    scores: Scores
    prompt_hash: str
    usage: Usage = Usage()


class Duplicate(Record):
    """A seed (`step` seeds, ids of seeds) or profile (`step` profiles, profile ids) dropped for one that is kept.

    `similarity` is the Jaccard similarity of their character n-grams, 0 to 1.
    """

    KEY_FIELDS: ClassVar[tuple[str, ...]] = ("step", "dropped")

    step: Literal["seeds", "profiles"]
    dropped: str
    kept: str
    similarity: float


class Selected(Record):
    """A client of one of the four sets, and the stratum it was drawn for; `filled`: it stands in for another's."""

    KEY_FIELDS: ClassVar[tuple[str, ...]] = ("profile_id",)

    profile_id: str
    split: Literal["train", "test", "dev", "heldout"]
    topic: str
    intensity: Literal["low", "moderate", "high"]
    quality: float
    filled: bool = False

"""The client pool: fictional adults with every field of PsychePass, Appendix A.

The shipped pool is our own writing. The paper's topics are kept; it names ten of its eleven, and
"Health" is ours for the eleventh. Its pool is minors; ours is adults, and a minor is refused unless asked for
(rollout_env/minors.py).
"""

from __future__ import annotations

from pathlib import Path

from psychepass import records
from psychepass.errors import UserError
from psychepass.schema import Profile
from rollout_env.minors import ADULT_YEARS, MINOR_ROMANTIC, ROMANTIC, ROMANTIC_TOPIC, is_minor
from rollout_env.profile_sources import profile_text

SHIPPED = Path(__file__).parent / "data" / "profiles.jsonl"
TOPICS = (
    "Romantic Relationships",
    "Interpersonal Relations",
    "Emotional Distress",
    "Personal Growth",
    "Family Relations",
    "Parenting",
    "Trauma",
    "Career",
    "Academics",
    "Finances",
    "Health",
)


def load_profiles(path: str | Path | None = None, allow_minors: bool = False) -> dict[str, Profile]:
    """profile id -> profile, in the file's order; `path` None reads the shipped pool.

    Raises:
        UserError: a line that is no Profile, an id that stands twice, a minor without `allow_minors`, or with
            a romantic or sexual theme, an unknown topic.
    """
    path = Path(path) if path is not None else SHIPPED
    profiles: dict[str, Profile] = {}
    for number, profile in enumerate(records.read(path, Profile), start=1):
        where = f"{path}, line {number}, profile {profile.profile_id!r}"
        if profile.profile_id in profiles:
            raise UserError(f"{where}: profile_id stands twice; each id is permitted once")
        if is_minor(profile) and not allow_minors:
            raise UserError(
                f"{where}: age is {profile.age}; permitted: {ADULT_YEARS} or more, or any with allow_minors: true"
            )
        if is_minor(profile) and (profile.topic == ROMANTIC_TOPIC or ROMANTIC.search(profile_text(profile))):
            raise UserError(f"{where}: {MINOR_ROMANTIC}, age {profile.age}; permitted: none, even with allow_minors")
        if profile.topic not in TOPICS:
            raise UserError(f"{where}: topic is {profile.topic!r}; permitted: {', '.join(TOPICS)}")
        profiles[profile.profile_id] = profile
    return profiles

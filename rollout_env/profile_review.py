"""The file in which a person verifies, edits or rejects the selected profiles, and what becomes of them.

The file is written once and never overwritten. It is read again on every call of the stage, so a reviewer may work
in as many sittings as it takes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import yaml
from pydantic import ValidationError

from psychepass import records
from psychepass.config import Config, describe, parse
from psychepass.errors import UserError
from psychepass.records import write_atomic
from psychepass.schema import Profile, Record
from psychepass.splits import SPLITS, shared_runs
from rollout_env.profile_records import Candidate, Scored, Selected
from rollout_env.profile_sources import profile_text

REVIEW, REVIEWS = "review.yaml", "reviews.jsonl"
PROFILES, SPLITS_FILE = "profiles.jsonl", "splits.yaml"
GIVEN = ("profile_id", "schema_version", "human_verified", "id")
HEADER = """\
# Human verification of the selected profiles (PsychePass, section 3.1.1: anonymity and harmlessness).
# For each profile set `verified` to true, false or reject, and `reviewer` to your name. The fields under `profile`
# may be edited; the other lines are for your information. Look for: anybody who could be recognised; names, places
# or events of real people; methods or plans of self-harm; a minor; anything that would hurt to read in a session.
# Then call `psychepass profiles` again with the same config: verified profiles are marked so, rejected ones leave
# their set, the rest stay marked as unverified.
"""


class ReviewRow(Config):
    """A row as a person left it. `profile` holds the fields that may be edited."""

    profile_id: str
    set: str
    summary: str
    source: dict[str, Any]
    scores: dict[str, Any]
    verified: bool | Literal["reject"]
    reviewer: str
    remarks: str
    profile: dict[str, Any]


class Review(Record):
    """What a person decided on a profile; `edited` names the fields they changed."""

    KEY_FIELDS: ClassVar[tuple[str, ...]] = ("profile_id",)

    profile_id: str
    decision: Literal["verified", "unverified", "rejected"]
    reviewer: str
    remarks: str
    edited: tuple[str, ...]


def write_review(
    path: Path, selected: Sequence[Selected], made: Mapping[str, Candidate], scored: Mapping[str, Scored]
) -> None:
    """A row a selected profile, in the order of the sets; `made` and `scored` by profile id."""
    rows = []
    for s in selected:
        p = made[s.profile_id].profile
        row = ReviewRow(
            profile_id=s.profile_id,
            set=s.split,
            summary=f"{p.name}, {p.age}, {p.occupation}: {p.topic} / {p.subtopic}",
            source=made[s.profile_id].origin.model_dump(mode="json"),
            scores=scored[s.profile_id].scores.model_dump(mode="json"),
            verified=False,
            reviewer="",
            remarks="",
            profile=p.model_dump(mode="json", exclude=set(GIVEN)),
        )
        rows.append(row.model_dump(mode="json"))
    write_atomic(path, HEADER + yaml.safe_dump(rows, allow_unicode=True, sort_keys=False, width=110))


def read_review(
    path: Path, selected: Sequence[Selected], made: Mapping[str, Candidate], faults: Callable[[Profile], list[str]]
) -> tuple[list[Profile], list[Review]]:
    """The profiles that stay, as edited, and the decision on every one; both in the order of `selected`.

    `faults` says what an edited profile may not hold.

    Raises:
        UserError: not YAML, a row missing, twice or too many, a wrong value or an edit that breaks a rule: which
            profile, field and value.
    """
    rows = _rows(path, [s.profile_id for s in selected])
    profiles, reviews = [], []
    for s in selected:
        row, before = rows[s.profile_id], made[s.profile_id].profile
        where = f"{path}, profile {s.profile_id!r}"
        if row.verified is True and not row.reviewer.strip():
            raise UserError(f"{where}: verified is true but reviewer is empty; permitted: the reviewer's name")
        if row.set != s.split:
            raise UserError(f"{where}: set is {row.set!r}; permitted: {s.split!r}, as it was drawn")
        given = {k: getattr(before, k) for k in ("profile_id", "schema_version")}
        if clash := sorted(set(row.profile) & set(GIVEN)):
            raise UserError(f"{where}: profile has {', '.join(clash)}; permitted: the fields that were there")
        try:
            after = Profile.model_validate(row.profile | given | {"human_verified": row.verified is True})
        except ValidationError as e:
            raise UserError(f"{where}: {describe(e, Profile)}") from e
        edited = _differences(before, after)
        if edited and row.verified != "reject" and (found := faults(after)):
            raise UserError(f"{where}: {'; '.join(found)}")
        decision = "rejected" if row.verified == "reject" else "verified" if row.verified else "unverified"
        said = {"decision": decision, "reviewer": row.reviewer, "remarks": row.remarks, "edited": edited}
        reviews.append(Review.model_validate({"profile_id": s.profile_id} | said))
        if decision != "rejected":
            profiles.append(after)
    return profiles, reviews


def write_clients(folder: Path, profiles: Sequence[Profile], split_of: Mapping[str, str]) -> None:
    """profiles.jsonl and splits.yaml.

    Raises:
        UserError: a held-out profile shares eight words in a row with one of another set (after an edit).
    """
    held, rest = (
        [t for p in profiles if (split_of[p.profile_id] == "heldout") is side for t in profile_text(p).split("\n")]
        for side in (True, False)
    )
    if shared := shared_runs(held, rest):
        raise UserError(
            f"{folder / REVIEW}: held-out profiles share {len(shared)} runs of 8 words with the rest, e.g. "
            f"{min(shared)!r}; edit one side"
        )
    records.write(folder / PROFILES, profiles)
    sets = {s: [p.profile_id for p in profiles if split_of[p.profile_id] == s] for s in SPLITS}
    write_atomic(folder / SPLITS_FILE, yaml.safe_dump(sets, sort_keys=False))


def _rows(path: Path, wanted: list[str]) -> dict[str, ReviewRow]:
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise UserError(f"{path}: not valid YAML: {' '.join(str(e).split())[:300]}") from e
    except ValueError as e:  # 2021-02-30 without quotes is read as a date
        raise UserError(f"{path}: not valid YAML: {e}; put a date that is meant as text in quotes") from e
    if not isinstance(tree, list) or not all(isinstance(row, dict) for row in tree):
        raise UserError(f"{path}: expected a list of profiles, each with `profile_id` and the other keys")
    rows: dict[str, ReviewRow] = {}
    for number, row in enumerate(tree, start=1):
        parsed = parse(ReviewRow, row, f"{path}, entry {number} ({row.get('profile_id')!r})")
        if parsed.profile_id in rows:
            raise UserError(f"{path}, entry {number}: profile_id {parsed.profile_id!r} stands twice")
        rows[parsed.profile_id] = parsed
    missing, extra = sorted(set(wanted) - set(rows)), sorted(set(rows) - set(wanted))
    if missing or extra:
        raise UserError(
            f"{path}: the selected profiles are not those listed (missing {missing[:5]}, unknown {extra[:5]}); "
            "`verified: reject` takes one out of its set"
        )
    return rows


def _differences(before: Profile, after: Profile) -> tuple[str, ...]:
    return tuple(k for k in type(before).model_fields if k not in GIVEN and getattr(before, k) != getattr(after, k))

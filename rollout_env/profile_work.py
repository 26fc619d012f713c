"""The steps of stage `profiles`, each from the files of the step before; see rollout_env/profile_pipeline.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from psychepass import records
from psychepass.config import StageConfig
from psychepass.endpoint import Endpoint
from psychepass.errors import UserError
from psychepass.ledger import spent_usd
from psychepass.records import Appender
from psychepass.run import say
from psychepass.schema import Failure, Profile, Sampling, Usage, content_hash
from rollout_env.asking import GroupedAppends
from rollout_env.deidentify import DeIdentifier
from rollout_env.profile_calls import Asking, Job, ask_all
from rollout_env.profile_draft import (
    MINOR_ROMANTIC,
    expansion_prompt,
    faults,
    read_profile,
    read_scores,
    scoring_prompt,
)
from rollout_env.profile_records import Candidate, Duplicate, Language, Scored, Scores, Seed, Selected
from rollout_env.profile_review import REVIEW, REVIEWS, read_review, write_clients, write_review
from rollout_env.profile_seeds import make_seeds
from rollout_env.profile_selection import Draw, draw, near_duplicates
from rollout_env.profile_sources import SourceEntry, profile_text
from rollout_env.profiles import ADULT_YEARS

SEEDS, REFUSALS, CANDIDATES, SCORES = "seeds.jsonl", "seed_refusals.jsonl", "candidates.jsonl", "scores.jsonl"
FAILURES, DUPLICATES, SELECTED = "profile_failures.jsonl", "duplicates.jsonl", "selected.jsonl"
LEDGER, SUMMARY = "ledger_profiles.jsonl", "profiles.json"
Pool = list[tuple[Profile, Scores]]


class ProfilesConfig(StageConfig):
    """See configs/profiles.yaml, where every key is explained."""

    sources: list[SourceEntry] = Field(min_length=1)
    language: Language | None
    allow_minors: bool
    spacy_pipelines: dict[Language, str] = Field(default_factory=dict)
    endpoint: Endpoint
    sampling: Sampling
    near_duplicate: float = Field(gt=0, le=1)
    least: dict[Literal["linguistic_complexity", "emotional_intensity", "counselling_relevance"], int]
    sets: dict[Literal["train", "test", "dev", "heldout"], int]
    topic_shares: dict[str, float]
    fill: bool
    budget_usd: float | None = Field(default=None, ge=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _check_numbers(self) -> ProfilesConfig:
        wrong = [f"least.{k} is {v}; permitted: 1 to 5" for k, v in self.least.items() if not 1 <= v <= 5]
        wrong += [f"sets.{k} is {v}; permitted: 0 or more" for k, v in self.sets.items() if v < 0]
        missing = [k for k in ("train", "test", "dev", "heldout") if k not in self.sets]
        wrong += [f"sets lacks {', '.join(missing)}"] if missing else []
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


class Work:
    """The steps of one call of the stage, in order; each reads what is there and makes what is missing."""

    def __init__(self, config: ProfilesConfig, folder: Path):
        self.config, self.folder = config, folder

    @cached_property
    def deidentifier(self) -> DeIdentifier:
        return DeIdentifier(self.config.spacy_pipelines)

    @property
    def anything_asked(self) -> bool:
        ledger = self.folder / LEDGER
        return ledger.is_file() and ledger.stat().st_size > 0

    def make(self) -> dict[str, Any]:
        """Everything up to the review file; returns facts for the manifest."""
        config = self.config
        seeds, refused = self.seeds(write=True)
        twice = near_duplicates({s.id: s.text for s in seeds}, config.near_duplicate, "seeds")
        kept = without(seeds, twice)
        say(f"seeds: {len(seeds)} read, {len(refused)} refused, {len(twice)} near-duplicates, {len(kept)} kept")
        with Appender(self.folder / FAILURES, Failure) as failures:
            candidates = self._expand(kept, failures)
            scored = self._score(candidates, failures)
        pool, dropped = self._pool(candidates, scored)
        records.write(self.folder / DUPLICATES, [*twice, *dropped.pop("duplicates")])
        least, sizes = config.least.get("emotional_intensity", 1), {**config.sets}
        drawn = draw(pool, sizes, config.topic_shares, least, config.fill, config.seed)
        if not drawn.selected:
            raise UserError(f"no profile is left to select from ({self.folder / DUPLICATES}, {self.folder / FAILURES})")
        records.write(self.folder / SELECTED, drawn.selected)
        made, by_id = {c.profile.profile_id: c for c in candidates}, {s.profile_id: s for s in scored}
        if not (self.folder / REVIEW).exists():
            write_review(self.folder / REVIEW, drawn.selected, made, by_id)
        counts = _seed_counts(seeds, refused, len(twice), failures.done.values()) | dropped
        counts |= {"profiles": len(candidates), "pool": len(pool)} | _draw_counts(drawn, sizes)
        records.write_json(self.folder / SUMMARY, counts)
        # failures were paid too, and the ledger alone knows a first answer that a kill cut off from the second
        usage = sum((r.usage for r in [*candidates, *scored, *failures.done.values()]), Usage())
        return {"usage": usage.model_dump(), "cost_usd": round(spent_usd(self.folder / LEDGER), 6), **counts}

    def take_review(self) -> dict[str, Any]:
        """profiles.jsonl, splits.yaml and reviews.jsonl from the review file as it is now."""
        selected = records.read(self.folder / SELECTED, Selected)
        made = {c.profile.profile_id: c for c in records.read(self.folder / CANDIDATES, Candidate)}
        profiles, reviews = read_review(self.folder / REVIEW, selected, made, self._faults)
        write_clients(self.folder, profiles, {s.profile_id: s.split for s in selected})
        records.write(self.folder / REVIEWS, reviews)
        found = Counter(r.decision for r in reviews)
        counts = {d: found[d] for d in ("verified", "unverified", "rejected")}
        counts["edited"] = sum(bool(r.edited) for r in reviews)
        records.write_json(self.folder / SUMMARY, records.read_json(self.folder / SUMMARY) | {"review": counts})
        say(
            f"profiles: {counts['verified']} of {len(profiles)} are verified by a person, {counts['edited']} edited, "
            f"{counts['rejected']} rejected; verify them in {self.folder / REVIEW} and call the stage again"
        )
        return {"reviewed": counts}

    def seeds(self, write: bool) -> tuple[list[Seed], list[Failure]]:
        paths = self.folder / SEEDS, self.folder / REFUSALS
        if all(p.is_file() for p in paths):
            return records.read(paths[0], Seed), records.read(paths[1], Failure)
        c = self.config
        made = make_seeds(c.sources, c.language, c.allow_minors, c.seed, self.deidentifier)
        if write:
            records.write(paths[1], made[1])
            records.write(paths[0], made[0])
        return made

    def expansion(self, seed: Seed) -> str:
        return expansion_prompt(seed, self.config.language or seed.language, self.config.allow_minors)

    def _expand(self, seeds: Sequence[Seed], failures: Appender) -> list[Candidate]:
        with Appender(self.folder / CANDIDATES, Candidate) as done:
            there = {c.seed_id for c in done.done.values()}
            whole = [s for s in seeds if s.profile and s.id not in there]
            done.append(*(Candidate(seed_id=s.id, origin=s.origin, profile=s.profile) for s in whole if s.profile))
            failed = {f.subject for f in failures.done.values()}
            jobs = [self._expansion_job(s) for s in seeds if not s.profile and s.id not in there | failed]
            if jobs:
                _ = self.deidentifier  # loaded now: its seconds would hold up the calls under way
            self._ask(jobs, "expansion", done, failures)
            found = {c.seed_id: c for c in done.done.values()}
        return [found[s.id] for s in seeds if s.id in found]

    def _expansion_job(self, seed: Seed) -> Job:
        language, prompt = self.config.language or seed.language, self.expansion(seed)

        def make(text: str, usage: Usage) -> Candidate:
            profile = read_profile(text, seed, language, self.config.allow_minors, self.deidentifier)
            hashed = content_hash(prompt)
            return Candidate(seed_id=seed.id, origin=seed.origin, profile=profile, prompt_hash=hashed, usage=usage)

        return Job(seed.id, language, prompt, make)

    def _score(self, candidates: Sequence[Candidate], failures: Appender) -> list[Scored]:
        with Appender(self.folder / SCORES, Scored) as done:
            there = {s.profile_id for s in done.done.values()} | {f.subject for f in failures.done.values()}
            jobs = [_scoring_job(c.profile) for c in candidates if c.profile.profile_id not in there]
            self._ask(jobs, "scoring", done, failures)
            return list(done.done.values())

    def _ask(self, jobs: Sequence[Job], step: str, done: Appender, failures: Appender) -> None:
        config = self.config
        journals = GroupedAppends(done), GroupedAppends(failures)
        asking = Asking(config.endpoint, config.sampling, config.seed, step, *journals)
        ask_all(jobs, asking, self.folder / LEDGER, config.budget_usd)

    def _faults(self, profile: Profile) -> list[str]:
        return faults(profile, self.config.allow_minors, self.deidentifier)

    def _pool(self, candidates: Sequence[Candidate], scored: Sequence[Scored]) -> tuple[Pool, dict[str, Any]]:
        """What may be selected, and what was dropped on the way."""
        scores = {s.profile_id: s.scores for s in scored}
        pool = [(c.profile, scores[c.profile.profile_id]) for c in candidates if c.profile.profile_id in scores]
        young = [p.profile_id for p, s in pool if p.age < ADULT_YEARS and s.romantic_or_sexual]
        low = {k: [p.profile_id for p, s in pool if getattr(s, k) < v] for k, v in self.config.least.items()}
        out = {*young, *(i for ids in low.values() for i in ids)}
        pool = sorted(((p, s) for p, s in pool if p.profile_id not in out), key=lambda ps: -ps[1].quality)
        texts = {p.profile_id: profile_text(p) for p, _ in pool}
        twice: list[Duplicate] = near_duplicates(texts, self.config.near_duplicate, "profiles")
        gone = {d.dropped for d in twice}
        counts = {"below_least": {k: len(v) for k, v in low.items()}, MINOR_ROMANTIC: len(young)}
        counts |= {"profile_duplicates": len(twice), "duplicates": twice}
        return [(p, s) for p, s in pool if p.profile_id not in gone], counts


def without(seeds: Sequence[Seed], duplicates: Iterable[Duplicate]) -> list[Seed]:
    """The seeds that are not dropped."""
    gone = {d.dropped for d in duplicates}
    return [s for s in seeds if s.id not in gone]


def _scoring_job(profile: Profile) -> Job:
    prompt = scoring_prompt(profile)

    def make(text: str, usage: Usage) -> Scored:
        hashed = content_hash(prompt)
        return Scored(profile_id=profile.profile_id, scores=read_scores(text), prompt_hash=hashed, usage=usage)

    return Job(profile.profile_id, profile.language, prompt, make)


def _seed_counts(
    seeds: Sequence[Seed], refused: Sequence[Failure], duplicates: int, failures: Iterable[Failure]
) -> dict[str, Any]:
    replaced = sum((Counter(s.replaced) for s in seeds), Counter())
    return {
        "read": len(seeds) + len(refused),
        "refused": dict(Counter(f.reason for f in refused)),
        "replaced": dict(sorted(replaced.items())),
        "seed_duplicates": duplicates,
        "failed": dict(Counter(f"{f.stage}: {f.reason}" for f in failures)),
    }


def _draw_counts(drawn: Draw, sizes: Mapping[str, int]) -> dict[str, Any]:
    """Also says what is short, because a short stratum is not filled unasked."""
    found = Counter(s.split for s in drawn.selected)
    filled = sum(s.filled for s in drawn.selected)
    short = {f"{topic} / {band}": n for (topic, band), n in drawn.short.items()}
    sets = {name: {"wanted": n, "selected": found[name]} for name, n in sizes.items()}
    say("sets: " + ", ".join(f"{name} {s['selected']} of {s['wanted']}" for name, s in sets.items()))
    if short:
        listed = ", ".join(f"{name}: {n}" for name, n in list(short.items())[:6])
        more = f" and {len(short) - 6} other strata" if len(short) > 6 else ""
        missing = sum(short.values())
        say(f"short: {missing} missing in their stratum ({listed}{more}), {filled} of them filled from others")
    return {"sets": sets, "short": short, "filled": filled, "passed_over": drawn.passed_over}

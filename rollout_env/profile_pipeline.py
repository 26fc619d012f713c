"""Stage `profiles`: seeds become fictional clients (PsychePass, section 3.1.1 and Appendix A).

Each step leaves a file in the run, and a call of the stage does only what is missing:

  seeds.jsonl              read and de-identified; seed_refusals.jsonl: what was refused, and why
  candidates.jsonl         expanded by the model into the fields of Appendix A
  scores.jsonl             scored by the model; profile_failures.jsonl: what it could not do
  duplicates.jsonl         near-duplicates among seeds and among profiles, and what they were dropped for
  selected.jsonl           drawn for the four sets
  review.yaml              for a person to verify, edit or reject; read again by every call; reviews.jsonl
  profiles.jsonl           Profile records, marked as verified or not; splits.yaml; profiles.json: the counts

ledger_profiles.jsonl holds every call to the model.
"""

from __future__ import annotations

from pathlib import Path

from psychepass import records
from psychepass.config import load
from psychepass.dry_run import Planned, table, word_tokens
from psychepass.endpoint import Price, prompt_tokens
from psychepass.errors import UserError
from psychepass.ledger import spent_usd
from psychepass.run import file_hash, stage_run
from psychepass.schema import Failure, Message
from rollout_env.profile_draft import scoring_prompt
from rollout_env.profile_records import Candidate, Scored
from rollout_env.profile_review import REVIEW
from rollout_env.profile_selection import near_duplicates, quotas
from rollout_env.profile_work import (
    CANDIDATES,
    FAILURES,
    LEDGER,
    REFUSALS,
    SCORES,
    SEEDS,
    ProfilesConfig,
    Work,
    without,
)
from rollout_env.prompts import read_prompt

FREE = frozenset({"run", "budget_usd"})  # these change no profile
EXPANSION_WORDS, SCORE_WORDS = 450, 30  # of an answer, for --dry-run


def main(config_path: str, overrides: list[str]) -> None:
    config = _checked(config_path, overrides)
    inputs = [file for entry in config.sources for file in entry.files()]
    with stage_run("profiles", config, inputs=inputs, ignore=FREE) as run:
        work = Work(config, run.dir)
        if not run.done:
            try:
                run.note(**work.make())
            except UserError:
                if run.manifest["starts"] == 1 and not work.anything_asked:
                    for name in (SEEDS, REFUSALS, CANDIDATES, SCORES, FAILURES, LEDGER):
                        (run.dir / name).unlink(missing_ok=True)
                    run.abandon()
                raise
        run.note(**work.take_review(), review=file_hash(run.dir / REVIEW))


def dry_run(config_path: str, overrides: list[str]) -> None:
    """Print what is still to be asked; sources are read and de-identified in memory, nothing is written."""
    config = _checked(config_path, overrides)
    work = Work(config, Path(config.run))
    print(table(planned(work), config.budget_usd, spent_usd(work.folder / LEDGER)))


def planned(work: Work) -> list[Planned]:
    """The calls of the two steps. An answer that cannot be used is asked for once more, which is not counted."""
    config, endpoint = work.config, work.config.endpoint
    seeds, _ = work.seeds(write=False)
    kept = without(seeds, near_duplicates({s.id: s.text for s in seeds}, config.near_duplicate, "seeds"))
    failed = {f.subject for f in records.peek(work.folder / FAILURES, Failure)}
    made = {c.seed_id: c.profile for c in records.peek(work.folder / CANDIDATES, Candidate)}
    scored = {s.profile_id for s in records.peek(work.folder / SCORES, Scored)} | failed
    expanding = [work.expansion(s) for s in kept if s.id not in made and s.id not in failed and not s.profile]
    ready = [*made.values(), *(s.profile for s in kept if s.profile and s.id not in made)]
    scoring = [scoring_prompt(p) for p in ready if p.profile_id not in scored]
    most = config.sampling.max_tokens
    size, score = (min(word_tokens(words), most) for words in (EXPANSION_WORDS, SCORE_WORDS))
    n, frame = len(expanding), _tokens(read_prompt(f"profile_score_{config.language or 'en'}.txt"))
    later = n * (frame + size), n * (frame + most)
    return [
        _planned(f"{endpoint.name}, expansion", endpoint.price, expanding, n, (0, 0), (size, most)),
        _planned(f"{endpoint.name}, scoring", endpoint.price, scoring, len(scoring) + n, later, (score, most)),
    ]


def _planned(
    model: str, price: Price, prompts: list[str], calls: int, later: tuple[int, int], reply: tuple[int, int]
) -> Planned:
    """`later`: tokens of the prompts that are not known yet, expected and at most; `reply` likewise, of one reply."""
    asked = sum(_tokens(p) for p in prompts)
    return Planned(model, price, calls, asked + later[0], calls * reply[0], asked + later[1], calls * reply[1])


def _tokens(prompt: str) -> int:
    return prompt_tokens([Message(role="user", content=prompt)])


def _checked(config_path: str, overrides: list[str]) -> ProfilesConfig:
    """The config, with shares that cannot be refused before anything is asked."""
    config = load(ProfilesConfig, config_path, overrides)
    quotas(sum(config.sets.values()), config.topic_shares, config.least.get("emotional_intensity", 1))
    return config

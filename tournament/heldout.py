"""Stage `heldout`: the base and the aligned policy meet clients that nothing before has seen.

Reads scripts.jsonl, judge.json, the policies and the scorer service. Writes under heldout/: scripts.jsonl,
turns.jsonl and sessions.jsonl (rollout_env.session), battles.jsonl (both judges), rewards.jsonl and
summary.json; and counts the opening of the held-out set in openings.json beside the run.
The judges here are the reference judge and its shadow, whoever judged the tournament.
Every session of one policy meets every session of the other with the same client, and the base policy's
own seeds meet each other. After a kill the stage goes on where it stood; nothing finished is asked again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from psychepass import records
from psychepass.config import StageConfig, load
from psychepass.errors import UserError
from psychepass.run import say, stage_run
from psychepass.schema import Battle, Dimension, Sampling, Script, Session
from psychepass.scoring import Scorer
from psychepass.splits import Splits, check_heldout
from psychepass.weights import resolve, weights_hash
from rollout_env.profiles import load_profiles
from rollout_env.script_lint import lint
from rollout_env.script_source import bank_named, scripts_for
from rollout_env.session import simulate
from rollout_env.therapist import TherapistEntry
from tournament import openings, reference_judge, summary
from tournament.gate import ReplyCheck
from tournament.judge import match, subject
from tournament.lexicon import LexiconName
from tournament.paired_rewards import PromptRewards, measure, prompts_of
from tournament.reference_judge import ReferenceJudge
from tournament.sampler import Sampler

FREE = frozenset({"run", "scorer_url", "scorer_timeout_s", "cache_gib", "rows", "allow_minors"})
ROLES: tuple[LexiconName, ...] = ("judge", "shadow")


class HeldoutConfig(StageConfig):
    """`base` and `aligned` are therapists as in `simulate`; weights that name a folder of the run are taken there.

    Mean reward: `prompts` turns a client of the base's first seed, `samples` replies each, `rows` replies in
    one batch. `margin` is the gate's. Whatever is chosen here is chosen before the set is opened.
    """

    splits: str
    profiles: str | None = None
    allow_minors: bool = False
    scripts: str | None = None
    form: Literal["full", "short"]
    target_words: int = Field(ge=1)
    sampling: Sampling
    base: TherapistEntry
    aligned: TherapistEntry
    seeds: list[int] = Field(min_length=2)
    prompts: int = Field(ge=2)
    samples: int = Field(ge=1)
    rows: int = Field(ge=1)
    margin: float = Field(gt=0, le=1)
    cache_gib: float = Field(gt=0)
    scorer_url: str | None = None
    scorer_timeout_s: float = Field(gt=0)

    @model_validator(mode="after")
    def _check_policies(self) -> HeldoutConfig:
        for entry in (self.base, self.aligned):
            if entry.kind == "endpoint":
                raise ValueError(f"{entry.name!r} is an endpoint; permitted here: kind local or rules")
        return self


def main(config_path: str, overrides: list[str]) -> None:
    config = load(HeldoutConfig, config_path, overrides)
    run_dir = Path(config.run)
    base, aligned = (in_run(entry, run_dir) for entry in (config.base, config.aligned))
    splits_path = Path(config.splits)
    files = [Path(f) for f in (config.profiles, config.scripts) if f]
    inputs = [splits_path, *files, run_dir / "scripts.jsonl", run_dir / "judge.json", *policy_files(aligned, run_dir)]
    with stage_run("heldout", config, inputs, ignore=FREE) as run:
        if not run.done:
            compare(config, run_dir, base, aligned, splits_path)
            found = records.read_json(run_dir / "heldout" / "summary.json")
            run.note(opened=found["opened"], gate=found["gate"]["passes"], reward_model=found["reward"]["model"])


def compare(config: HeldoutConfig, run_dir: Path, base: TherapistEntry, aligned: TherapistEntry, splits: Path) -> None:
    """The whole comparison, up to summary.json."""
    folder = run_dir / "heldout"
    scripts = heldout_scripts(splits, config.form, run_dir, config.profiles, config.scripts, config.allow_minors)
    records.write(folder / "scripts.jsonl", scripts)
    judges = frozen_judges(run_dir / "judge.json")
    scorer = Scorer.of_run(run_dir, config.scorer_url, config.scorer_timeout_s)  # before the set is opened
    opened = openings.count(run_dir, weights_hash(resolve(aligned.weights)) if aligned.weights else aligned.name)
    sessions = simulate(
        scripts,
        [base, aligned],
        config.seeds,
        {s.profile_id: "heldout" for s in scripts},
        folder=folder,
        target_words=config.target_words,
        sampling=config.sampling,
        heldout=True,
        cache_gib=config.cache_gib,
    )
    sides = by_policy(sessions, base.name, aligned.name)
    by_id = {s.id: s for s in scripts}
    pairs = pairings(sides["base"], sides["aligned"])
    battles = judge_all(folder / "battles.jsonl", judges, pairs, by_id)
    planned = len(scripts) * (len(config.seeds) ** 2 + len(list(combinations(config.seeds, 2))))
    rewards = paired(config, folder / "rewards.jsonl", ((base, sides["base"]), (aligned, sides["aligned"])), scorer)
    checks = {name: [c for s in side for c in reply_checks(s, by_id[s.script_id])] for name, side in sides.items()}
    failures = len(ROLES) * (planned - len(pairs))
    panel = records.read_json(run_dir / "judge.json").get("panel", {}).get("name", "")
    found = summary.summarise(**sides, battles=battles, checks=checks, rewards=rewards, margin=config.margin,
                              failures=failures, seed=config.seed, panel=panel)  # fmt: skip
    records.write_json(folder / "summary.json", found | {"opened": opened, "form": config.form})
    overall = found["overall"]
    say(f"heldout: overall win score {overall['score']:+.2f} [{overall['low']:+.2f}, {overall['high']:+.2f}]")


def paired(
    config: HeldoutConfig, path: Path, sides: Iterable[tuple[TherapistEntry, list[Session]]], scorer: Scorer
) -> list[PromptRewards]:
    """Rewards of both policies, the base being the first, on turns of the base's first session with each client."""
    (_, of_base), *_ = sides = list(sides)
    first = {s.profile_id: s for s in sorted(of_base, key=lambda s: s.seed, reverse=True)}
    prompts = [p for _, s in sorted(first.items()) for p in prompts_of(s, config.prompts)]
    found: list[PromptRewards] = []
    for entry, sessions in sides:
        sampler = Sampler(entry, config.target_words, config.sampling, config.samples, config.rows, config.cache_gib)
        weights, batch = sessions[0].therapist.weights, max(1, config.rows // config.samples)
        found += measure(path, entry.name, weights, prompts, sampler.answer, scorer, batch)
    return found


def in_run(entry: TherapistEntry, run_dir: Path) -> TherapistEntry:
    """The entry with weights that name a folder of the run (such as `policy`) made into its path.

    Raises:
        UserError: it names `policy` and the run has none.
    """
    if entry.weights is None:
        return entry
    path = run_dir / entry.weights
    if path.is_dir():
        return entry.model_copy(update={"weights": str(path)})
    if entry.weights == "policy":
        raise UserError(f"{path}: no such folder; run psychepass grpo first")
    return entry


def policy_files(entry: TherapistEntry, run_dir: Path) -> list[Path]:
    """Weights that lie in the run: other weights under the same name are another comparison."""
    if entry.weights is None or not Path(entry.weights).is_relative_to(run_dir):
        return []
    return [Path(entry.weights) / "config.json", *sorted(Path(entry.weights).glob("*.safetensors"))]


def heldout_scripts(
    splits_path: Path,
    form: Literal["full", "short"],
    run_dir: Path,
    profiles_path: str | None = None,
    scripts_path: str | None = None,
    allow_minors: bool = False,
) -> list[Script]:
    """The held-out clients' scripts, checked: each by script_lint, and against every script of the run.

    `profiles_path`, `scripts_path` and `allow_minors` as in stage `simulate`.

    Raises:
        UserError: a fault, a shared run of eight words, a held-out client in the run, or none at all.
    """
    split_of = load(Splits, splits_path).of()
    profiles = load_profiles(profiles_path, allow_minors)
    held = [p for p, split in split_of.items() if split == "heldout"]
    unknown = [p for p in held if p not in profiles]
    if unknown or not held:
        raise UserError(f"{splits_path}: heldout is {held}; permitted: profiles of the pool, at least one")
    scripts = list(scripts_for(sorted(held), profiles, form, scripts_path).values())
    others = records.read(run_dir / "scripts.jsonl", Script)
    seen = sorted({s.profile_id for s in others} & set(held))
    if seen:
        raise UserError(f"{run_dir / 'scripts.jsonl'}: held-out client {seen[0]!r} has spoken in this run before")
    check_heldout([*others, *scripts], split_of)
    faults = [fault for s in scripts for fault in lint(s, bank_named(s.bank))]
    if faults:
        raise UserError(f"{len(faults)} faults in held-out scripts; the first: {faults[0]}")
    records.write(run_dir / "heldout" / "profiles.jsonl", [profiles[p] for p in sorted(held)])
    return scripts


def frozen_judges(path: Path) -> dict[str, ReferenceJudge]:
    """The judge and the shadow judge as the tournament froze them.

    Raises:
        UserError: this code's rubric is not the frozen one.
    """
    frozen = records.read_json(path)
    judges = {}
    for role in ROLES:
        tau = {Dimension(d): float(v) for d, v in frozen[role]["tau"].items()}
        judges[role] = ReferenceJudge(role, tau)
        identity = judges[role].identity.model_dump(mode="json")
        changed = [k for k, v in identity.items() if frozen[role].get(k) != v]
        if changed:
            raise UserError(
                f"{path}: the {role} was frozen with {changed[0]} {frozen[role].get(changed[0])!r}, the code now has "
                f"{identity[changed[0]]!r}; one run has one judge"
            )
    return judges


def by_policy(sessions: Iterable[Session], base: str, aligned: str) -> dict[str, list[Session]]:
    """The sessions of each policy with the clients that both have met, the base twice or more.

    Raises:
        UserError: there is no such client.
    """
    sides = {"base": [], "aligned": []}
    for s in sessions:
        sides["base" if s.therapist.name == base else "aligned"].append(s)
    met = {side: Counter(s.profile_id for s in of_side) for side, of_side in sides.items()}
    both = {c for c, n in met["base"].items() if n > 1 and met["aligned"][c]}
    if not both:
        raise UserError(f"{base} and {aligned} finished too few sessions to compare; see session_failures.jsonl")
    return {side: [s for s in of_side if s.profile_id in both] for side, of_side in sides.items()}


def pairings(base: Sequence[Session], aligned: Sequence[Session]) -> list[tuple[Session, Session]]:
    """Aligned against base, all seeds; then the base's seeds among themselves. By client."""
    pairs = []
    for client in sorted({s.profile_id for s in base}):
        b, a = (sorted((s for s in x if s.profile_id == client), key=lambda s: s.seed) for x in (base, aligned))
        pairs += [*product(a, b), *combinations(b, 2)]
    return pairs


def judge_all(
    path: Path,
    judges: Mapping[str, ReferenceJudge],
    pairs: Sequence[tuple[Session, Session]],
    scripts: Mapping[str, Script],
) -> dict[str, list[Battle]]:
    """Every pair under every judge, by role; battles that `path` has are not judged again."""
    found: dict[str, list[Battle]] = {role: [] for role in judges}
    with records.Appender(path, Battle) as battles:
        for role, judge in judges.items():
            known = {subject(b.session_a, b.session_b): b for b in battles.done.values() if b.judge == judge.identity}
            for a, b in pairs:
                made = match(judge, a, b, scripts[a.script_id], 0, known)
                judged = [o for o in made if isinstance(o, Battle)]
                battles.append(*(o for o in judged if o.key not in battles.done))
                found[role] += judged
    return found


def reply_checks(session: Session, script: Script) -> list[ReplyCheck]:
    """The absolute floor's facts, found by either judge's word lists."""
    found: list[ReplyCheck] = []
    for check in reference_judge.floor_checks(session, script):
        facts: dict[str, Any] = {"turn": check.turn, "dimension": check.dimension, "harm": check.harm}
        if check.dimension is Dimension.CRISIS:
            facts["crisis_complete"] = bool(check.safety_question and check.human_help)
        found.append(ReplyCheck(profile_id=session.profile_id, session=session.id, **facts))
    return found

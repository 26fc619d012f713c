"""Stage `heldout`: the base and the aligned policy meet clients that nothing before has seen.

Reads scripts.jsonl, judge.json, the policies and the scorer service. Writes under heldout/: scripts.jsonl,
turns.jsonl and sessions.jsonl (rollout_env.session), battles.jsonl (both judges), rewards.jsonl and
summary.json; and counts the opening of the held-out set in openings.json beside the run. With LLM judges or an LLM
client also panel/ (tournament/measuring.py), client_lines.jsonl and ledger_heldout.jsonl, what both cost; with
policies behind endpoints replies.jsonl, what is scored for the mean reward. Of those the weights are taken on trust.
Who measures: tournament/measuring.py; by default the reference judge and its shadow, whoever judged the tournament.
Every session of one policy meets every session of the other with the same client, and the base policy's
own seeds meet each other. After a kill the stage goes on where it stood; nothing finished is asked again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

from psychepass import records
from psychepass.config import load
from psychepass.dry_run import table
from psychepass.errors import UserError
from psychepass.ledger import spent_usd
from psychepass.run import say, stage_run
from psychepass.schema import Battle, ClientLine, Dimension, Identity, Profile, Script, Session
from psychepass.scoring import Scorer
from psychepass.weights import resolve, weights_hash
from rollout_env.client_lines import adherence
from rollout_env.open_session import LINES
from rollout_env.session import simulate
from rollout_env.therapist import TherapistEntry
from tournament import openings, reference_judge, summary
from tournament.gate import ReplyCheck
from tournament.heldout_setup import (
    HeldoutConfig,
    endpoints_of,
    heldout_clients,
    in_run,
    pairs_of_client,
    planned_asks,
    policy_files,
    sampler_of,
)
from tournament.judge import match, subject
from tournament.measuring import PANEL, check_endpoints, decide, frozen_judges, panel_of
from tournament.paired_rewards import PromptRewards, measure, prompts_of
from tournament.panel import Panel
from tournament.play import Match
from tournament.reference_judge import ReferenceJudge
from tournament.sampler import Sampler

FREE = frozenset({"run", "scorer_url", "scorer_timeout_s", "cache_gib", "rows", "allow_minors", "budget_usd"})
LEDGER = "ledger_heldout.jsonl"


def main(config_path: str, overrides: list[str]) -> None:
    config = load(HeldoutConfig, config_path, overrides)
    run_dir = Path(config.run)
    base, aligned = (in_run(entry, run_dir) for entry in (config.base, config.aligned))
    files = [Path(f) for f in (config.splits, config.profiles, config.scripts) if f]
    inputs = [*files, run_dir / "scripts.jsonl", run_dir / "judge.json", *policy_files(base), *policy_files(aligned)]
    with stage_run("heldout", config, inputs, ignore=FREE) as run:
        if run.done:
            return
        folder = run_dir / "heldout"
        try:
            compare(config, run_dir, base, aligned)
        except UserError:
            if not (folder / openings.MARK).is_file():  # nobody has spoken: a mended config may follow
                run.abandon()
            raise
        found = records.read_json(folder / "summary.json")
        run.note(opened=found["opened"], gate=found["gate"]["passes"], reward_model=found["reward"]["model"])


def compare(config: HeldoutConfig, run_dir: Path, base: TherapistEntry, aligned: TherapistEntry) -> None:
    """The whole comparison, up to summary.json."""
    folder = run_dir / "heldout"
    profiles, scripts = heldout_clients(config, run_dir)
    judges = frozen_judges(run_dir / "judge.json")
    panel = panel_of(config.judges, judges, scripts, "heldout")
    records.write(folder / "profiles.jsonl", profiles)
    records.write(folder / "scripts.jsonl", scripts)
    # all that can be wrong is found before the set is opened
    scorer = Scorer.of_run(run_dir, config.scorer_url, config.scorer_timeout_s)
    if not (folder / openings.MARK).is_file():
        check_endpoints(endpoints_of(config), folder / LEDGER)
    served = aligned.endpoint.identity if aligned.endpoint else aligned.name
    opened = openings.count(run_dir, weights_hash(resolve(aligned.weights)) if aligned.weights else served)
    sessions = hold(config, folder, [base, aligned], profiles, scripts)
    everything = by_policy(sessions, base.name)
    sides = compared(everything)
    by_id = {s.id: s for s in scripts}
    battles, failures, llm = verdicts(config, folder, judges, panel, sides, by_id)
    rewards = paired(config, folder / "rewards.jsonl", ((base, sides["base"]), (aligned, sides["aligned"])), scorer)
    checks = {name: [c for s in of for c in reply_checks(s, by_id[s.script_id])] for name, of in everything.items()}
    labeller = records.read_json(run_dir / "judge.json").get("panel", {}).get("name", "")
    found = summary.summarise(**sides, battles=battles, checks=checks, rewards=rewards, margin=config.margin,
                              clients=len(scripts), failures=failures, seed=config.seed, panel=labeller,
                              llm=llm)  # fmt: skip
    if (folder / LINES).is_file():
        found["client"] = {
            "name": sessions[0].client.name,
            "lines": adherence(records.read(folder / LINES, ClientLine)),
        }
    found["warnings"] = scorer.warnings(d for r in rewards for d in r.dimensions)
    if base.endpoint:
        found["warnings"] += ["Both policies answered behind endpoints: which weights they served is taken on trust."]
    records.write_json(folder / "summary.json", found | {"opened": opened, "form": config.form})
    overall = found["overall"]
    say(f"heldout: overall win score {overall['score']:+.2f} [{overall['low']:+.2f}, {overall['high']:+.2f}]")


def hold(
    config: HeldoutConfig,
    folder: Path,
    policies: Sequence[TherapistEntry],
    profiles: Sequence[Profile],
    scripts: Sequence[Script],
) -> list[Session]:
    return simulate(
        scripts,
        policies,
        config.seeds,
        {s.profile_id: "heldout" for s in scripts},
        folder=folder,
        target_words=config.target_words,
        sampling=config.sampling,
        heldout=True,
        cache_gib=config.cache_gib,
        budget_usd=config.budget_usd,
        client=config.client,
        profiles={p.profile_id: p for p in profiles},
        ledger=LEDGER,
    )


def verdicts(
    config: HeldoutConfig,
    folder: Path,
    judges: Mapping[str, ReferenceJudge],
    panel: Panel | None,
    sides: Mapping[str, Sequence[Session]],
    by_id: Mapping[str, Script],
) -> tuple[dict[str, list[Battle]], int, dict[str, Any] | None]:
    """Battles by role, how many judgements there are not, and the LLM judges, if they measure.

    A session that ended as a Failure takes its judgements with it: they are counted as failed.
    """
    pairs = pairings(sides["base"], sides["aligned"])
    battles = judge_all(folder / "battles.jsonl", judges, pairs, by_id)
    lost = len(by_id) * pairs_of_client(config.seeds) - len(pairs)
    if panel is None:
        return battles, len(judges) * lost, None
    matches = [Match(a, b, by_id[a.script_id], 0) for a, b in pairs]
    measured = decide(panel, matches, folder / PANEL, folder / LEDGER, config.budget_usd)
    battles = {"judge": measured.all, "shadow": battles["shadow"], "reference": battles["judge"]}
    return battles, 2 * lost + measured.failures, measured.described(speakers(sides))


def dry_run(config_path: str, overrides: list[str]) -> None:
    """Print what is still to be asked of each model behind an endpoint; nothing is asked or written."""
    config = load(HeldoutConfig, config_path, overrides)
    if not endpoints_of(config):
        raise UserError(
            "--dry-run: no judge, client or policy is behind an endpoint: this stage calls no model; call it without"
        )
    run_dir = Path(config.run)
    print(table(planned_asks(config, run_dir), config.budget_usd, spent_usd(run_dir / "heldout" / LEDGER)))


def speakers(sides: Mapping[str, Sequence[Session]]) -> list[Identity]:
    """Both policies, and the model that plays the clients, if one does: a judge that is one of them is named."""
    one = sides["base"][0]
    return [one.therapist, sides["aligned"][0].therapist, *([one.client] if one.client.kind == "endpoint" else [])]


def paired(
    config: HeldoutConfig, path: Path, sides: Iterable[tuple[TherapistEntry, list[Session]]], scorer: Scorer
) -> list[PromptRewards]:
    """Rewards of both policies, the base being the first, on turns of the base's first session with each client."""
    (_, of_base), *_ = sides = list(sides)
    first = {s.profile_id: s for s in sorted(of_base, key=lambda s: s.seed, reverse=True)}
    prompts = [p for _, s in sorted(first.items()) for p in prompts_of(s, config.prompts)]
    found: list[PromptRewards] = []
    for entry, sessions in sides:
        if entry.endpoint:
            sampler = sampler_of(config, entry, path.parent)
            sampler.ask(prompts, path.parent / LEDGER, config.budget_usd)
        else:
            given = (config.target_words, config.sampling, config.samples, config.rows, config.cache_gib)
            sampler = Sampler(entry, *given)
        weights, batch = sessions[0].therapist.weights, max(1, config.rows // config.samples)
        found += measure(path, entry.name, weights, prompts, sampler.answer, scorer, batch)
    return found


def by_policy(sessions: Iterable[Session], base: str) -> dict[str, list[Session]]:
    sides = {"base": [], "aligned": []}
    for s in sessions:
        sides["base" if s.therapist.name == base else "aligned"].append(s)
    return sides


def compared(sides: Mapping[str, Sequence[Session]]) -> dict[str, list[Session]]:
    """The sessions of each policy with the clients that both have met, the base twice or more.

    Raises:
        UserError: there is no such client.
    """
    met = {side: Counter(s.profile_id for s in of_side) for side, of_side in sides.items()}
    both = {c for c, n in met["base"].items() if n > 1 and met["aligned"][c]}
    if not both:
        raise UserError("heldout: the two policies finished too few sessions to compare; see session_failures.jsonl")
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

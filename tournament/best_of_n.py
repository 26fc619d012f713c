"""Stage `best-of-n`: what choosing replies by the reward model is worth under the tournament's judge.

The policy answers every turn of its own sessions with the test clients anew, max(n) + 1 times; the scorer service
gives rewards. A draw shuffles the replies of each turn: the last is the random one, and the best of the first n is the
reward model's choice. The session with all choices meets the session with all random replies before the judge and the
shadow judge. n = 1 is the control: two random replies, so its gain is chance alone. Who measures:
tournament/measuring.py; by default the reference judge and its shadow, whoever judged the tournament.
Each reply is given to the history of the policy's own session, so that both sides answer the same words; the judge
reads a session that nobody held in one piece.
Writes best_of_n/: rewards.jsonl (tournament.paired_rewards; after a kill nothing scored is asked again), draws.jsonl
and summary.json; with LLM judges also panel/ and ledger_best-of-n.jsonl.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from tqdm import tqdm

from psychepass import records
from psychepass.config import load
from psychepass.dry_run import table
from psychepass.errors import UserError
from psychepass.ledger import spent_usd
from psychepass.run import say, stage_run
from psychepass.schema import Battle, Sampling, Script, Session
from psychepass.scoring import Scorer
from psychepass.weights import resolve, weights_hash
from rollout_env.therapist import TherapistEntry
from tournament.choices import Duel, answers_of, choices_of, composed, gain
from tournament.endpoint_matches import REPLIES
from tournament.heldout_setup import in_run, policy_files
from tournament.llm_judge import JudgeReply
from tournament.measuring import (
    PANEL,
    JudgedConfig,
    Measured,
    check_endpoints,
    decide,
    frozen_judges,
    panel_of,
)
from tournament.paired_rewards import PromptRewards, measure, prompts_of
from tournament.panel import Panel
from tournament.planned_judgements import Shown, expected_session, prompt_sizes, still_to_ask
from tournament.play import Match
from tournament.reference_context import check_readable
from tournament.reference_judge import ReferenceJudge
from tournament.sampler import Sampler

FREE = frozenset({"run", "scorer_url", "scorer_timeout_s", "cache_gib", "rows", "budget_usd"})
FOLDER, LEDGER = "best_of_n", "ledger_best-of-n.jsonl"
WORDS = (
    "Research software. Clients are fictional; replies are machine-written and may be harmful. "
    "Not for use with people in distress; does not replace a clinician. "
    "Reference-judge scores describe text features, not therapeutic competence. "
    "If someone may be in danger, contact local emergency services.",
    "The reward model learnt the tournament's verdicts: a gain shows that it learnt them, not that the care is better.",
    "Replies to histories of the policy's own sessions, judged as one session.",
    "One training run of the reward model; intervals cover clients, not training seeds.",
)


class BestOfNConfig(JudgedConfig):
    """`policy`: a therapist of `simulate` with local weights. `draws`: how often each turn's replies are shuffled;
    they are averaged within the client. `rows`: replies in one batch.
    """

    policy: TherapistEntry
    n: list[Annotated[int, Field(ge=1)]] = Field(min_length=1)
    draws: int = Field(ge=1)
    rows: int = Field(ge=1)
    cache_gib: float = Field(gt=0)
    scorer_url: str | None = None
    scorer_timeout_s: float = Field(gt=0)


def main(config_path: str, overrides: list[str]) -> None:
    config = load(BestOfNConfig, config_path, overrides)
    run_dir = Path(config.run)
    policy = in_run(config.policy, run_dir)
    inputs = [run_dir / "sessions.jsonl", run_dir / "scripts.jsonl", run_dir / "judge.json"]
    with stage_run("best-of-n", config, [*inputs, *policy_files(policy)], ignore=FREE) as run:
        if run.done:
            return
        try:
            sessions = own_sessions(policy, run_dir / "sessions.jsonl")
            scripts = {s.id: s for s in records.read(run_dir / "scripts.jsonl", Script)}
            judges = frozen_judges(run_dir / "judge.json")
            check_readable(scripts[s.script_id] for s in sessions)
            panel = panel_of(config.judges, judges, [scripts[s.script_id] for s in sessions], "best-of-n")
            scorer = Scorer.of_run(run_dir, config.scorer_url, config.scorer_timeout_s)
            check_endpoints((j.endpoint for j in config.judges or ()), run_dir / FOLDER / LEDGER)
        except UserError:
            run.abandon()
            raise
        found = compare(config, run_dir / FOLDER, policy, sessions, scripts, scorer, judges, panel)
        run.note(reward_model=found["reward_model"], prompts=found["prompts"])
        for n, row in found["gain"].items():
            ends = "{score:+.2f} [{low:+.2f}, {high:+.2f}]".format(**row["overall"])
            say(f"best-of-n: best of {n} against a random reply: overall win score {ends}, {len(sessions)} clients")


def compare(
    config: BestOfNConfig,
    folder: Path,
    policy: TherapistEntry,
    sessions: Sequence[Session],
    scripts: Mapping[str, Script],
    scorer: Scorer,
    judges: Mapping[str, ReferenceJudge],
    panel: Panel | None,
) -> dict[str, Any]:
    """The whole stage, up to summary.json, which it returns."""
    rewards = answered(config, policy, sessions, scorer, folder / "rewards.jsonl")
    sizes = sorted(set(config.n))
    duels = [d for n in tqdm(sizes, desc="best-of-n", unit="n") for d in met(config, n, sessions, rewards, scripts)]
    battles: list[dict[str, list[Battle]]] = [
        {role: [judge.judge(d.match.a, d.match.b, d.match.script)] for role, judge in judges.items()}
        for d in tqdm(duels, desc="verdicts", unit="duel")
    ]
    llm: dict[str, Any] = {}
    if panel:
        measured = decide(panel, [d.match for d in duels], folder / PANEL, folder / LEDGER, config.budget_usd)
        battles = [
            {"judge": list(read), "shadow": b["shadow"], "reference": b["judge"]}
            for b, read in zip(battles, measured.battles, strict=True)
        ]
        llm = of_llm_judges(measured, sessions[0])
    draws = [d.draw_of(of_duel) for d, of_duel in zip(duels, battles, strict=True)]
    records.write(folder / "draws.jsonl", draws)
    found = {}
    for n in sizes:
        of_n = [of_duel for d, of_duel in zip(draws, battles, strict=True) if d.n == n]
        by_role = {role: [b for of_duel in of_n for b in of_duel[role]] for role in of_n[0]}
        found[str(n)] = gain([d for d in draws if d.n == n], by_role, config.seed)
    samples = max(config.n) + 1
    summary = {
        "gain": found,
        "policy": {"name": policy.name, "weights": sessions[0].therapist.weights},
        "reward_model": rewards[0].model,
        "judges": {role: judge.identity.model_dump(mode="json") for role, judge in judges.items()},
        "clients": len(sessions),
        "prompts": len(rewards),
        "prompts_left_out": sum(len(r.replies) < samples for r in rewards),
        "samples": samples,
        "draws": config.draws,
        "words": list(WORDS),
        "warnings": scorer.warnings(d for r in rewards for d in r.dimensions),
    }
    records.write_json(folder / "summary.json", summary | llm)
    return summary


def of_llm_judges(measured: Measured, own: Session) -> dict[str, Any]:
    """What summary.json says of LLM judges: who they are, which of them play too, how many judgements failed."""
    judged = len(measured.all) + measured.failures
    return {
        "llm_judges": measured.described([own.therapist, *([own.client] if own.client.kind == "endpoint" else [])]),
        "failures": {"n": measured.failures, "share": measured.failures / judged, "judgements": judged},
    }


def dry_run(config_path: str, overrides: list[str]) -> None:
    """Print what is still to be asked of each judge's model; nothing is asked or written.

    A prompt is taken to be as long as one of the policy's own sessions, at most with replies of its token bound.
    """
    config = load(BestOfNConfig, config_path, overrides)
    if not config.judges:
        raise UserError("--dry-run: the reference judge calls no model; call the stage without, or set judges")
    run_dir = Path(config.run)
    sessions = own_sessions(in_run(config.policy, run_dir), run_dir / "sessions.jsonl")
    scripts = {s.id: s for s in records.read(run_dir / "scripts.jsonl", Script)}
    own = [scripts[s.script_id] for s in sessions]
    panel = panel_of(config.judges, frozen_judges(run_dir / "judge.json"), own, "best-of-n")
    assert panel, "there are judges"
    bound = (sessions[0].therapist.sampling or Sampling()).max_tokens
    mean, _ = prompt_sizes(panel, sessions)
    _, most = prompt_sizes(panel, [expected_session(s, bound) for s in own])
    shown = {"": Shown(2 * len(sessions) * len(set(config.n)) * config.draws, mean, most)}
    path = run_dir / FOLDER / PANEL / REPLIES
    planned = still_to_ask(panel, shown, panel.own(records.peek(path, JudgeReply), path), lambda _: "")
    print(table(planned, config.budget_usd, spent_usd(run_dir / FOLDER / LEDGER)))


def own_sessions(policy: TherapistEntry, path: Path) -> list[Session]:
    """The policy's first session with each test client, by client.

    Raises:
        UserError: no such session, one of other weights, or a policy that does not draw its replies.
    """
    if policy.kind != "local":
        raise UserError(f"policy {policy.name!r} is of kind {policy.kind!r}; permitted: local, which draws its replies")
    tested = [s for s in records.iterate(path, Session) if s.split == "test"]
    own = sorted((s for s in tested if s.therapist.name == policy.name), key=lambda s: (s.profile_id, -s.seed))
    if not own:
        names = ", ".join(sorted({s.therapist.name for s in tested})) or "none"
        raise UserError(f"{path}: no session of policy {policy.name!r} with a test client; there are: {names}")
    weights = weights_hash(resolve(str(policy.weights)))
    if own[0].therapist.weights != weights:
        raise UserError(
            f"policy {policy.name!r}: weights {policy.weights} have hash {weights!r}, its sessions in {path} were held "
            f"by {own[0].therapist.weights!r}"
        )
    return list({s.profile_id: s for s in own}.values())


def answered(
    config: BestOfNConfig, policy: TherapistEntry, sessions: Sequence[Session], scorer: Scorer, path: Path
) -> list[PromptRewards]:
    """The policy's replies to every turn, drawn as in its own sessions, and their rewards."""
    speaker, samples = sessions[0].therapist, max(config.n) + 1
    sampling = speaker.sampling or Sampling()
    sampler = Sampler(policy, sessions[0].target_words, sampling, samples, config.rows, config.cache_gib)
    prompts = [p for s in sessions for p in prompts_of(s, len(s.turns))]
    batch = max(1, config.rows // samples)
    return measure(path, policy.name, speaker.weights, prompts, sampler.answer, scorer, batch)


def met(
    config: BestOfNConfig,
    n: int,
    sessions: Sequence[Session],
    rewards: Sequence[PromptRewards],
    scripts: Mapping[str, Script],
) -> Iterator[Duel]:
    """All draws of one n: the session of the choices at A, that of the random replies at B."""
    answers = answers_of(rewards, max(config.n) + 1)
    for session in sessions:
        turns, script = answers[session.id], scripts[session.script_id]
        for draw in range(config.draws):
            picked = choices_of(turns, session, n, draw, config.seed)
            places = tuple(c.best for c in picked), tuple(c.other for c in picked)
            best, other = (composed(session, turns, side) for side in places)
            yield Duel(n, draw, session.id, *places, sum(c.gain for c in picked) / len(picked),
                       Match(best, other, script, 0))  # fmt: skip

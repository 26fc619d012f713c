"""Stage `best-of-n`: what choosing replies by the reward model is worth under the tournament's judge.

The policy answers every turn of its own sessions with the test clients anew, max(n) + 1 times; the scorer service
gives rewards. A draw shuffles the replies of each turn: the last is the random one, and the best of the first n is the
reward model's choice. The session with all choices meets the session with all random replies before the judge and the
shadow judge that the tournament froze. n = 1 is the control: two random replies, so its gain is chance alone. Both are
the reference judge and its shadow, whoever judged the tournament.
Each reply is given to the history of the policy's own session, so that both sides answer the same words; the judge
reads a session that nobody held in one piece.
Writes best_of_n/: rewards.jsonl (tournament.paired_rewards; after a kill nothing scored is asked again), draws.jsonl
and summary.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from tqdm import tqdm

from psychepass import records
from psychepass.config import StageConfig, load
from psychepass.errors import UserError
from psychepass.run import say, stage_run
from psychepass.schema import Battle, Sampling, Script, Session
from psychepass.scoring import Scorer
from psychepass.weights import resolve, weights_hash
from rollout_env.therapist import TherapistEntry
from tournament.choices import Draw, answers_of, choices_of, composed, gain, winners_of
from tournament.heldout import frozen_judges, in_run, policy_files
from tournament.paired_rewards import PromptRewards, measure, prompts_of
from tournament.reference_context import check_readable
from tournament.reference_judge import ReferenceJudge
from tournament.sampler import Sampler

FREE = frozenset({"run", "scorer_url", "scorer_timeout_s", "cache_gib", "rows"})
FOLDER = "best_of_n"
WORDS = (
    "Research software. Clients are fictional; replies are machine-written and may be harmful. "
    "Not for use with people in distress; does not replace a clinician. "
    "Reference-judge scores describe text features, not therapeutic competence. "
    "If someone may be in danger, contact local emergency services.",
    "The reward model learnt the tournament's verdicts: a gain shows that it learnt them, not that the care is better.",
    "Replies to histories of the policy's own sessions, judged as one session.",
    "One training run of the reward model; intervals cover clients, not training seeds.",
)


class BestOfNConfig(StageConfig):
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
    with stage_run("best-of-n", config, [*inputs, *policy_files(policy, run_dir)], ignore=FREE) as run:
        if run.done:
            return
        try:
            sessions = own_sessions(policy, run_dir / "sessions.jsonl")
            judges = frozen_judges(run_dir / "judge.json")
            spoken = {s.script_id for s in sessions}
            check_readable(s for s in records.read(run_dir / "scripts.jsonl", Script) if s.id in spoken)
            scorer = Scorer.of_run(run_dir, config.scorer_url, config.scorer_timeout_s)
        except UserError:
            run.abandon()
            raise
        found = compare(config, run_dir, policy, sessions, judges, scorer)
        run.note(reward_model=found["reward_model"], prompts=found["prompts"])
        for n, row in found["gain"].items():
            ends = "{score:+.2f} [{low:+.2f}, {high:+.2f}]".format(**row["overall"])
            say(f"best-of-n: best of {n} against a random reply: overall win score {ends}, {len(sessions)} clients")


def compare(
    config: BestOfNConfig,
    run_dir: Path,
    policy: TherapistEntry,
    sessions: Sequence[Session],
    judges: Mapping[str, ReferenceJudge],
    scorer: Scorer,
) -> dict[str, Any]:
    """The whole stage, up to summary.json, which it returns."""
    folder = run_dir / FOLDER
    scripts = {s.id: s for s in records.read(run_dir / "scripts.jsonl", Script)}
    rewards = answered(config, policy, sessions, scorer, folder / "rewards.jsonl")
    draws, found = [], {}
    for n in tqdm(sorted(set(config.n)), desc="best-of-n", unit="n"):
        of_n, battles = judged(config, n, sessions, rewards, judges, scripts)
        draws += of_n
        found[str(n)] = gain(of_n, battles, config.seed)
    records.write(folder / "draws.jsonl", draws)
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
    }
    records.write_json(folder / "summary.json", summary)
    return summary


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


def judged(
    config: BestOfNConfig,
    n: int,
    sessions: Sequence[Session],
    rewards: Sequence[PromptRewards],
    judges: Mapping[str, ReferenceJudge],
    scripts: Mapping[str, Script],
) -> tuple[list[Draw], dict[str, list[Battle]]]:
    """All draws of one n, and their battles by role with the choices at A."""
    answers = answers_of(rewards, max(config.n) + 1)
    draws: list[Draw] = []
    battles: dict[str, list[Battle]] = {role: [] for role in judges}
    for session in sessions:
        turns, script = answers[session.id], scripts[session.script_id]
        for draw in range(config.draws):
            picked = choices_of(turns, session, n, draw, config.seed)
            places = tuple(c.best for c in picked), tuple(c.other for c in picked)
            best, other = (composed(session, turns, side) for side in places)
            for role, judge in judges.items():
                battles[role].append(judge.judge(best, other, script))
            draws.append(
                Draw(
                    profile_id=session.profile_id,
                    session=session.id,
                    n=n,
                    draw=draw,
                    best=places[0],
                    other=places[1],
                    gain=sum(c.gain for c in picked) / len(picked),
                    winners={role: winners_of(of_role[-1]) for role, of_role in battles.items()},
                )
            )
    return draws, battles

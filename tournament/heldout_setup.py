"""What stage `heldout` compares: its config, the two policies, the held-out clients; and what is still to be asked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from psychepass import records
from psychepass.config import Seeds, load
from psychepass.dry_run import Planned, word_tokens
from psychepass.endpoint import Endpoint
from psychepass.errors import UserError
from psychepass.schema import Profile, Sampling, Script, Session
from psychepass.splits import Split, Splits, check_heldout
from rollout_env.client import ClientEntry
from rollout_env.open_session import peek_unfinished
from rollout_env.passive import passive_script
from rollout_env.plan import plan_sessions
from rollout_env.planned import planned_calls
from rollout_env.profiles import load_profiles
from rollout_env.script_lint import lint
from rollout_env.script_source import bank_named, scripts_for
from rollout_env.therapist import TherapistEntry, own_prompt
from tournament.endpoint_matches import REPLIES
from tournament.endpoint_sampler import EndpointSampler
from tournament.llm_judge import JudgeReply
from tournament.measuring import PANEL, JudgedConfig, frozen_judges, panel_of
from tournament.paired_rewards import Prompt, prompts_of
from tournament.planned_judgements import Expected, expected_session, planned_comparison
from tournament.reference_context import check_readable

REWARDED = "replies.jsonl"  # of policies behind endpoints: what is scored for the mean reward


class HeldoutConfig(JudgedConfig):
    """`base` and `aligned` are therapists as in `simulate`; weights that name a folder of the run are taken there.

    Mean reward: `prompts` turns a client of the base's first seed, `samples` replies each, `rows` replies in
    one batch. `margin` is the gate's. `client` as in `simulate`; `budget_usd` bounds what it, the judges and policies
    behind endpoints cost together. Whatever is chosen here is chosen before the set is opened.
    """

    splits: str
    profiles: str | None = None
    allow_minors: bool = False
    scripts: str | None = None
    client: ClientEntry | None = None
    form: Literal["full", "short"]
    target_words: int = Field(ge=1)
    sampling: Sampling
    base: TherapistEntry
    aligned: TherapistEntry
    seeds: Seeds = Field(min_length=2)
    prompts: int = Field(ge=2)
    samples: int = Field(ge=1)
    rows: int = Field(ge=1)
    margin: float = Field(gt=0, le=1)
    cache_gib: float = Field(gt=0)
    scorer_url: str | None = None
    scorer_timeout_s: float = Field(gt=0)

    @model_validator(mode="after")
    def _check_policies(self) -> HeldoutConfig:
        if (self.base.kind == "endpoint") != (self.aligned.kind == "endpoint"):
            kinds = ", ".join(f"{e.name!r} is of kind {e.kind}" for e in (self.base, self.aligned))
            raise ValueError(
                f"{kinds}; two engines draw replies in two ways; permitted: both policies of kind endpoint, or neither"
            )
        return self


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


def policy_files(entry: TherapistEntry) -> list[Path]:
    """Local weights and a prompt of its own: others under the same name are another policy."""
    found = [path] if (path := own_prompt(entry.prompt)) else []
    if entry.weights is None or not Path(entry.weights).is_dir():
        return found
    return [*found, Path(entry.weights) / "config.json", *sorted(Path(entry.weights).glob("*.safetensors"))]


def heldout_clients(config: HeldoutConfig, run_dir: Path) -> tuple[list[Profile], list[Script]]:
    """The held-out clients and their scripts, checked: each by script_lint, and against every script of the run.

    Raises:
        UserError: a fault, a shared run of eight words, a held-out client in the run or who speaks Chinese, or none.
    """
    split_of = load(Splits, config.splits).of()
    profiles = load_profiles(config.profiles, config.allow_minors)
    held = sorted(p for p, split in split_of.items() if split == "heldout")
    unknown = [p for p in held if p not in profiles]
    if unknown or not held:
        raise UserError(f"{config.splits}: heldout is {held}; permitted: profiles of the pool, at least one")
    scripts = list(scripts_for(held, profiles, config.form, config.scripts).values())
    others = records.read(run_dir / "scripts.jsonl", Script)
    seen = sorted({s.profile_id for s in others} & set(held))
    if seen:
        raise UserError(f"{run_dir / 'scripts.jsonl'}: held-out client {seen[0]!r} has spoken in this run before")
    check_heldout([*others, *scripts], split_of)
    faults = [fault for s in scripts for fault in lint(s, bank_named(s.bank))]
    if faults:
        raise UserError(f"{len(faults)} faults in held-out scripts; the first: {faults[0]}")
    check_readable(scripts)
    if config.client and config.client.mode == "passive":
        scripts = [passive_script(s, profiles[s.profile_id].language) for s in scripts]
    return [profiles[p] for p in held], scripts


def endpoints_of(config: HeldoutConfig) -> list[Endpoint]:
    """The judges', the policies', and the clients'."""
    found = [judge.endpoint for judge in config.judges or ()]
    found += [entry.endpoint for entry in (config.base, config.aligned) if entry.endpoint]
    return [*found, config.client.endpoint] if config.client and config.client.endpoint else found


def pairs_of_client(seeds: Sequence[int]) -> int:
    return len(seeds) ** 2 + math.comb(len(seeds), 2)


def planned_asks(config: HeldoutConfig, run_dir: Path) -> list[Planned]:
    """The calls that are still to be made, by model; nothing is asked or written."""
    folder = run_dir / "heldout"
    profiles, scripts = heldout_clients(config, run_dir)
    entries = [config.base, config.aligned]
    played = config.client.sampling if config.client and config.client.endpoint else None
    most = max((e.sampling or config.sampling).max_tokens for e in entries)
    tokens = Expected(min(word_tokens(config.target_words), most), most, played.max_tokens if played else None)
    held = list(records.peek(folder / "sessions.jsonl", Session))
    planned = list[Planned]()
    if played or config.base.endpoint:
        entries = [in_run(entry, run_dir) for entry in entries]
        split_of: dict[str, Split] = {s.profile_id: "heldout" for s in scripts}
        plans = plan_sessions(
            *(scripts, entries, config.seeds, split_of, config.target_words, config.sampling, None, True),
            *(config.client, {p.profile_id: p for p in profiles}),
        )
        planned += planned_calls(peek_unfinished(plans, folder), entries)
    if config.base.endpoint:
        planned += _planned_replies(config, folder, scripts, held, tokens)
    if panel := panel_of(config.judges, frozen_judges(run_dir / "judge.json"), scripts, "heldout"):
        path = folder / PANEL / REPLIES
        said = panel.own(records.peek(path, JudgeReply), path)
        planned += planned_comparison(panel, scripts, len(config.seeds), held, said, tokens)
    return planned


def _planned_replies(
    config: HeldoutConfig, folder: Path, scripts: Sequence[Script], held: Sequence[Session], tokens: Expected
) -> list[Planned]:
    """Of policies behind an endpoint, for the mean reward."""
    first = {s.profile_id: s for s in sorted(held, key=lambda s: -s.seed) if s.therapist.name == config.base.name}
    expected, longest = list[Prompt](), list[Prompt]()
    for script in scripts:
        session = first.get(script.profile_id) or expected_session(script, tokens.reply)
        most = first.get(script.profile_id) or expected_session(script, tokens.most_reply, tokens.most_line)
        expected += prompts_of(session, config.prompts)
        longest += prompts_of(most, config.prompts)
    samplers = (sampler_of(config, entry, folder) for entry in (config.base, config.aligned))
    return [sampler.planned(expected, longest, tokens.reply) for sampler in samplers]


def sampler_of(config: HeldoutConfig, entry: TherapistEntry, folder: Path) -> EndpointSampler:
    """Of a policy behind an endpoint."""
    return EndpointSampler(entry, config.target_words, config.sampling, config.samples, folder / REWARDED)

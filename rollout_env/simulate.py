"""Stage `simulate`: train, test and dev clients meet the contestants of the config.

Writes profiles.jsonl, scripts.jsonl, turns.jsonl, sessions.jsonl (and session_failures.jsonl, client_lines.jsonl,
ledger_simulate.jsonl) into the run. Held-out clients are read only to check that they share nothing with the
rest; the stage `heldout` alone lets them speak.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from psychepass import records
from psychepass.config import Seeds, StageConfig, load
from psychepass.dry_run import table
from psychepass.errors import UserError
from psychepass.ledger import spent_usd
from psychepass.run import StageRun, say, stage_run
from psychepass.schema import ClientLine, Profile, Sampling, Script, Session
from psychepass.served import served_models, several_served
from psychepass.splits import Splits, check_heldout, unverified
from rollout_env.client import ClientEntry
from rollout_env.client_lines import adherence
from rollout_env.minors import is_minor
from rollout_env.open_session import FAILURES, LINES, TURNS, peek_unfinished
from rollout_env.passive import passive_script
from rollout_env.plan import plan_sessions
from rollout_env.planned import planned_calls
from rollout_env.profiles import load_profiles
from rollout_env.script_source import scripts_for
from rollout_env.session import LEDGER, simulate
from rollout_env.therapist import TherapistEntry, own_prompt

FREE = frozenset({"run", "cache_gib", "budget_usd", "allow_minors"})  # these change no session
CLIENT_FILES = ("profiles.jsonl", "scripts.jsonl")


class SimulateConfig(StageConfig):
    """`meets` names, for each set of clients, the therapists that its clients meet.

    `profiles` and `scripts` are files of the stages of these names; null takes the shipped profiles, and builds the
    scripts. `client` null: the scripts speak. `allow_minors` permits clients under 18 (rollout_env/minors.py).

    `target_words` is asked for in the prompt; `sampling.max_tokens` cuts a reply off; `cache_gib` bounds
    the key-value cache of a local model. `budget_usd` bounds what the calls to endpoints may cost together, over all
    calls of the stage on this run.
    """

    splits: str
    profiles: str | None = None
    allow_minors: bool = False
    scripts: str | None = None
    client: ClientEntry | None = None
    form: Literal["full", "short"]
    target_words: int = Field(ge=1)
    sampling: Sampling
    therapists: list[TherapistEntry] = Field(min_length=1)
    meets: dict[Literal["train", "test", "dev"], list[str]]
    seeds: Seeds = Field(min_length=1)
    cache_gib: float = Field(gt=0)
    budget_usd: float | None = Field(default=None, ge=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _check_names(self) -> SimulateConfig:
        names = [t.name for t in self.therapists]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"two therapists are called {', '.join(twice)}; each needs a name of its own")
        unknown = sorted({n for met in self.meets.values() for n in met} - set(names))
        if unknown:
            raise ValueError(f"meets names {', '.join(unknown)}; permitted: {', '.join(names)}")
        for split, met in self.meets.items():
            if twice := sorted({n for n in met if met.count(n) > 1}):
                raise ValueError(f"meets.{split} names {', '.join(twice)} more than once; permitted: each once")
        if not any(self.meets.values()):
            raise ValueError(f"meets names no therapist; permitted: {', '.join(names)}")
        return self

    @property
    def silent(self) -> list[str]:
        """The therapists whom nobody meets."""
        met = {name for names in self.meets.values() for name in names}
        return [t.name for t in self.therapists if t.name not in met]


def main(config_path: str, overrides: list[str]) -> None:
    config = load(SimulateConfig, config_path, overrides)
    splits_path = Path(config.splits)
    prompts = {p for t in config.therapists if (p := own_prompt(t.prompt))}
    files = [Path(f) for f in (config.profiles, config.scripts) if f]
    with stage_run("simulate", config, inputs=[splits_path, *files, *sorted(prompts)], ignore=FREE) as run:
        if run.done:
            return
        if config.silent:
            say(f"simulate: {', '.join(config.silent)}: in no list of meets, so that nobody meets them")
        there = {name for name in CLIENT_FILES if (run.dir / name).exists()}  # not this stage's: stage `profiles`' own
        try:
            sessions = _hold(config, run.dir)
        except UserError:
            if run.manifest["starts"] == 1 and not _anything_said(run.dir):
                for name in CLIENT_FILES:
                    if name not in there:
                        (run.dir / name).unlink(missing_ok=True)
                run.abandon()
            raise
        _note(run, sessions)


def _note(run: StageRun, sessions: list[Session]) -> None:
    """What was held, in the manifest; what the reader of the run should know, also said."""
    usage = [s.usage for s in sessions]
    profiles = records.read(run.dir / CLIENT_FILES[0], Profile)
    mark = unverified(profiles)
    if young := sum(map(is_minor, profiles)):
        run.note(clients_under_18=young)
    say(f"simulate: {mark or 'every client profile is verified by a person'}")
    run.note(
        unverified_profiles=mark,
        sessions=len(sessions),
        turns=sum(len(s.turns) for s in sessions),
        completion_tokens=sum(u.completion_tokens for u in usage),
        model_seconds=round(sum(u.seconds for u in usage), 1),
        cost_usd=round(spent_usd(run.dir / LEDGER), 6),  # sessions that failed have cost something too
    )
    if models := served_models(run.dir / LEDGER):
        run.note(served_models=models)
        if told := several_served(models):
            say(f"simulate: {told}: sessions of more than one model bear one name")
    if (run.dir / LINES).exists():
        run.note(client_lines=adherence(records.read(run.dir / LINES, ClientLine)))


def _hold(config: SimulateConfig, folder: Path) -> list[Session]:
    split_of = load(Splits, config.splits).of()
    profiles, scripts = _clients(config, split_of)
    for name, made, model in zip(CLIENT_FILES, (profiles, scripts), (Profile, Script), strict=True):
        _write_once(folder / name, made, model)
    return simulate(
        scripts,
        config.therapists,
        config.seeds,
        split_of,
        folder=folder,
        target_words=config.target_words,
        sampling=config.sampling,
        meets={**config.meets},
        cache_gib=config.cache_gib,
        budget_usd=config.budget_usd,
        client=config.client,
        profiles={p.profile_id: p for p in profiles},
    )


def _anything_said(folder: Path) -> bool:
    return any((folder / n).exists() and (folder / n).stat().st_size for n in (TURNS, LINES, FAILURES, LEDGER))


def dry_run(config_path: str, overrides: list[str]) -> None:
    """Print what is still to be asked of each endpoint; nothing is asked or written.

    Local weights and rules cost nothing and are left out, so that no weights are fetched or read; unless a model plays
    their clients.
    """
    config = load(SimulateConfig, config_path, overrides)
    split_of, folder = load(Splits, config.splits).of(), Path(config.run)
    profiles, scripts = _clients(config, split_of)
    played = config.client is not None and config.client.endpoint is not None
    paid = [t for t in config.therapists if t.endpoint or played]
    names = {t.name for t in paid}
    plans = plan_sessions(
        *(scripts, paid, config.seeds, split_of, config.target_words, config.sampling),
        meets={split: [n for n in met if n in names] for split, met in config.meets.items()},
        heldout=False,
        client=config.client,
        profiles={p.profile_id: p for p in profiles},
    )
    planned = planned_calls(peek_unfinished(plans, folder), paid)
    print(table(planned, config.budget_usd, spent_usd(folder / LEDGER)))


def _clients(config: SimulateConfig, split_of: dict[str, str]) -> tuple[list[Profile], list[Script]]:
    """Profiles and scripts of the sets that speak here, after the check against the held-out ones."""
    profiles = load_profiles(config.profiles, config.allow_minors)
    missing = [p for p in split_of if p not in profiles]
    if missing:
        raise UserError(f"{config.splits}: no profile is called {', '.join(missing)}")
    scripts = scripts_for(list(split_of), profiles, config.form, config.scripts)
    check_heldout(scripts.values(), split_of)
    speaking = [p for p, split in split_of.items() if split != "heldout"]
    if config.client and config.client.mode == "passive":
        scripts = {p: passive_script(scripts[p], profiles[p].language) for p in speaking}
    return [profiles[p] for p in speaking], [scripts[p] for p in speaking]


def _write_once(path: Path, made: list, model: type) -> None:
    """Write the file, or check that an earlier call of this stage wrote the same."""
    if not path.exists():
        records.write(path, made)
    elif [r.id for r in records.read(path, model)] != [r.id for r in made]:
        raise UserError(
            f"{path}: was made from other profiles or wording than there are now; use another run directory"
        )

"""Stage `simulate`: train, test and dev clients meet the contestants of the config.

Writes profiles.jsonl, scripts.jsonl, turns.jsonl, sessions.jsonl (and session_failures.jsonl) into the
run. Held-out clients are read only to check that they share nothing with the rest; the stage `heldout`
alone lets them speak.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from psychepass import records
from psychepass.config import StageConfig, load
from psychepass.errors import UserError
from psychepass.run import stage_run
from psychepass.schema import Profile, Sampling, Script
from psychepass.splits import Splits, check_heldout
from rollout_env.profiles import load_profiles
from rollout_env.script import build_script
from rollout_env.session import simulate
from rollout_env.therapist import TherapistEntry


class SimulateConfig(StageConfig):
    """`meets` names, for each set of clients, the therapists that its clients meet.

    `target_words` is asked for in the prompt; `sampling.max_tokens` cuts a reply off; `cache_gib` bounds
    the key-value cache of a local model.
    """

    splits: str
    form: Literal["full", "short"]
    target_words: int = Field(ge=1)
    sampling: Sampling
    therapists: list[TherapistEntry] = Field(min_length=1)
    meets: dict[Literal["train", "test", "dev"], list[str]]
    seeds: list[int] = Field(min_length=1)
    cache_gib: float = Field(gt=0)


def main(config_path: str, overrides: list[str]) -> None:
    config = load(SimulateConfig, config_path, overrides)
    splits_path = Path(config.splits)
    with stage_run("simulate", config, inputs=[splits_path], ignore=frozenset({"run", "cache_gib"})) as run:
        if run.done:
            return
        split_of = load(Splits, splits_path).of()
        profiles, scripts = _clients(config, split_of)
        _write_once(run.dir / "profiles.jsonl", profiles, Profile)
        _write_once(run.dir / "scripts.jsonl", scripts, Script)
        sessions = simulate(
            scripts,
            config.therapists,
            config.seeds,
            split_of,
            folder=run.dir,
            target_words=config.target_words,
            sampling=config.sampling,
            meets={**config.meets},
            cache_gib=config.cache_gib,
        )
        usage = [s.usage for s in sessions]
        run.note(
            sessions=len(sessions),
            turns=sum(len(s.turns) for s in sessions),
            completion_tokens=sum(u.completion_tokens for u in usage),
            model_seconds=round(sum(u.seconds for u in usage), 1),
        )


def _clients(config: SimulateConfig, split_of: dict[str, str]) -> tuple[list[Profile], list[Script]]:
    """Profiles and scripts of the sets that speak here, after the check against the held-out ones."""
    profiles = load_profiles()
    missing = [p for p in split_of if p not in profiles]
    if missing:
        raise UserError(f"{config.splits}: no profile is called {', '.join(missing)}")
    scripts = {p: build_script(profiles[p], config.form) for p in split_of}
    check_heldout(scripts.values(), split_of)
    speaking = [p for p, split in split_of.items() if split != "heldout"]
    return [profiles[p] for p in speaking], [scripts[p] for p in speaking]


def _write_once(path: Path, made: list, model: type) -> None:
    """Write the file, or check that an earlier call of this stage wrote the same."""
    if not path.exists():
        records.write(path, made)
    elif [r.id for r in records.read(path, model)] != [r.id for r in made]:
        raise UserError(
            f"{path}: was made from other profiles or wording than there are now; use another run directory"
        )

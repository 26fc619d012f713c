"""Stage `data`: battles become preference pairs, the base policy's sessions become RL prompts.

Reads battles.jsonl and sessions.jsonl. Writes pairs.jsonl (train and test), prompts.parquet (verl's format; train
prompts, and dev prompts for validation) and data.json (counts, and the likelihood band of the base's dev replies).
The same inputs give the same bytes.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field

from psychepass import records
from psychepass.config import StageConfig, load
from psychepass.errors import UserError
from psychepass.run import say, stage_run
from psychepass.schema import Battle, Dimension, PreferencePair, RLPrompt, Session, content_hash
from rollout_env.therapist import chat_ids, system_prompt
from training.pairs import REWARDED, pairs_of
from training.prompts import Overlong, parquet_rows, prompts_of, require_safety, tally

PROMPT_SPLITS = ("train", "dev")
BAND = (0.01, 0.99)


class DataConfig(StageConfig):
    """`base`: the contestant whose policy is to be aligned; `model`: its weights, for their chat template.

    `prompt` names its system prompt (rollout_env/prompts). A prompt over `max_prompt_tokens` is cut from the
    left at turn boundaries (`overlong: cut`) or left out (`drop`, the paper's way).
    """

    base: str
    model: str
    prompt: str
    max_prompt_tokens: int = Field(ge=16)
    overlong: Overlong


def main(config_path: str, overrides: list[str]) -> None:
    config = load(DataConfig, config_path, overrides)
    run_dir = Path(config.run)
    inputs = [run_dir / "battles.jsonl", run_dir / "sessions.jsonl"]
    with stage_run("data", config, inputs) as run:
        if run.done:
            return
        try:
            pairs, prompts, facts = build(config, *inputs)
        except UserError:
            run.abandon()
            raise
        records.write(run_dir / "pairs.jsonl", pairs)
        write_parquet(run_dir / "prompts.parquet", prompts)
        records.write_json(run_dir / "data.json", facts)
        run.note(pairs=len(pairs), prompts=len(prompts))
        say(f"data: {len(pairs)} pairs ({facts['pairs']['kept_share']:.0%} of verdicts), {len(prompts)} prompts")


def build(
    config: DataConfig, battles_path: Path, sessions_path: Path
) -> tuple[list[PreferencePair], list[RLPrompt], dict[str, Any]]:
    """Pairs, prompts and the content of data.json. Raises UserError, see pairs_of and base_prompts."""
    sessions = {s.id: s for s in records.iterate(sessions_path, Session)}
    battles = records.read(battles_path, Battle)
    pairs = pairs_of(battles, sessions)
    if not pairs:
        raise UserError(f"{battles_path}: {len(battles)} battles and not one decided verdict; no pair can be made")
    prompts = base_prompts(config, list(sessions.values()))
    facts: dict[str, Any] = {
        "pairs": pair_facts(pairs, battles),
        "prompts": {s: tally(p for p in prompts if p.split == s) for s in PROMPT_SPLITS},
        "prompts_n": {s: sum(p.split == s for p in prompts) for s in PROMPT_SPLITS},
        "prompts_with_cut_history": sum(p.dropped_turns > 0 for p in prompts),
    }
    return pairs, prompts, facts | likelihood_band(config.base, sessions.values())


def base_prompts(config: DataConfig, sessions: Sequence[Session]) -> list[RLPrompt]:
    """The prompts of the base's train and dev sessions, by split, client, seed and turn.

    Raises:
        UserError: the base has no train or no dev session, its prompt is not the one that `prompt` names, or
            no train prompt is left for Crisis or Ethics.
    """
    own = [s for s in sessions if s.therapist.name == config.base and s.split in PROMPT_SPLITS]
    for split in PROMPT_SPLITS:
        if not any(s.split == split for s in own):
            names = sorted({s.therapist.name for s in sessions if s.split == split})
            raise UserError(f"sessions.jsonl: no {split} session of base {config.base!r}; {split} has {names}")

    from transformers import AutoTokenizer

    from psychepass import weights

    tokenizer = AutoTokenizer.from_pretrained(weights.resolve(config.model))
    prompts: list[RLPrompt] = []
    for session in sorted(own, key=lambda s: (PROMPT_SPLITS.index(s.split), s.profile_id, s.seed)):
        system = base_system_prompt(config.prompt, session)
        prompts += prompts_of(
            [session], system, lambda m: len(chat_ids(tokenizer, m)), config.max_prompt_tokens, config.overlong
        )
    require_safety((p for p in prompts if p.split == "train"), config.max_prompt_tokens)
    return prompts


def base_system_prompt(prompt: str, session: Session) -> str:
    """The system prompt that the base answered under; raises UserError where `prompt` is another one."""
    system = system_prompt(prompt, session.target_words)
    if content_hash(system) != session.therapist.prompt_hash:
        raise UserError(
            f"session {session.id}: {session.therapist.name!r} answered under the prompt with hash "
            f"{session.therapist.prompt_hash!r}, not under prompt {prompt!r} for {session.target_words} words"
        )
    return system


def pair_facts(pairs: Sequence[PreferencePair], battles: Sequence[Battle]) -> dict[str, Any]:
    """How many verdicts became pairs. A verdict is a match on one of the 12 dimensions, as the paper counts."""
    matches = {frozenset((b.session_a, b.session_b)) for b in battles}
    by_dimension = Counter(p.dimension for p in pairs)
    verdicts = len(matches) * len(Dimension)
    return {
        "n": len(pairs),
        "train": sum(p.split == "train" for p in pairs),
        "test": sum(p.split == "test" for p in pairs),
        "matches": len(matches),
        "verdicts": verdicts,
        "kept_share": len(pairs) / verdicts if verdicts else 0.0,
        "dimensions": {d.value: by_dimension[d] for d in REWARDED},
    }


def likelihood_band(base: str, sessions: Iterable[Session]) -> dict[str, Any]:
    """The 1 % and 99 % quantiles of the mean log-probability a token of the base's dev replies.

    Repeats of the base with another seed count too: the same weights, prompt and sampling. Null without
    log-probabilities (an endpoint gives none).
    """
    import numpy as np

    dev = [s for s in sessions if s.split == "dev"]
    policies = {_policy(s) for s in dev if s.therapist.name == base}
    values = [t.logprob for s in dev if _policy(s) in policies for t in s.turns if t.logprob is not None]
    band = [round(float(q), 6) for q in np.quantile(values, BAND)] if values else None
    return {"logprob_band": band, "logprob_band_n": len(values)}


def _policy(session: Session) -> str:
    return content_hash(session.therapist.model_dump(mode="json", exclude={"name", "seed"}))


def write_parquet(path: Path, prompts: Sequence[RLPrompt]) -> None:
    """The prompts in verl's format, written at once; byte-equal for equal prompts."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    message = pa.struct([("role", pa.string()), ("content", pa.string())])
    extra = pa.struct(
        [
            ("index", pa.int64()),
            ("split", pa.string()),
            ("session", pa.string()),
            ("turn", pa.int64()),
            ("phase", pa.int64()),
            ("profile_id", pa.string()),
            ("dimensions", pa.list_(pa.string())),
            ("prompt_id", pa.string()),
        ]
    )
    schema = pa.schema(
        [
            ("prompt", pa.list_(message)),
            ("data_source", pa.string()),
            ("ability", pa.string()),
            ("reward_model", pa.struct([("style", pa.string()), ("ground_truth", pa.string())])),
            ("extra_info", extra),
        ]
    )
    part = path.with_name(path.name + ".part")
    pq.write_table(pa.Table.from_pylist(parquet_rows(prompts), schema=schema), part)
    with part.open("rb") as f:
        os.fsync(f.fileno())
    part.replace(path)

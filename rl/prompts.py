"""The RL prompts as verl reads them: prompts.parquet split into train and dev, and checked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from psychepass.errors import UserError
from psychepass.schema import Dimension, Message
from psychepass.scoring import ScoreGroup
from rl.config import GRPOConfig

SOURCE = "psychepass"
COLUMNS = ("prompt", "data_source", "ability", "reward_model", "extra_info")


def split_prompts(path: Path, folder: Path, config: GRPOConfig, tokenizer: Any) -> dict[str, Path]:
    """Write grpo/train.parquet and grpo/dev.parquet; returns them by split.

    Raises:
        UserError: a column is missing, a prompt is too long for the policy, or a split has too few prompts.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    missing = [c for c in COLUMNS if c not in table.column_names]
    if missing:
        raise UserError(f"{path}: no column {', '.join(missing)}; expected {', '.join(COLUMNS)}")
    rows = table.to_pylist()
    for number, row in enumerate(rows):
        _check(row, f"{path}, row {number}", config, tokenizer)
    files = {}
    for split, needed in (("train", config.batch_size), ("dev", 1)):
        chosen = [row["extra_info"]["split"] == split for row in rows]
        if sum(chosen) < needed:
            raise UserError(f"{path}: {sum(chosen)} {split} prompts; at least {needed} are needed")
        files[split] = folder / f"{split}.parquet"
        files[split].parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.filter(pa.array(chosen)), files[split])
    return files


def _check(row: dict[str, Any], where: str, config: GRPOConfig, tokenizer: Any) -> None:
    extra = row["extra_info"]
    for field in ("split", "dimensions", "prompt_id"):
        if not extra.get(field):
            raise UserError(f"{where}: extra_info has no {field!r}")
    if row["data_source"] != SOURCE:
        raise UserError(f"{where}: data_source is {row['data_source']!r}, expected {SOURCE!r}")
    if extra["split"] not in ("train", "dev"):
        raise UserError(f"{where}: extra_info.split is {extra['split']!r}; permitted: train, dev")
    try:
        ScoreGroup(context=context_of(row["prompt"]), responses=("",), dimensions=dimensions_of(extra))
    except ValueError as e:
        raise UserError(f"{where}: no scorer could answer this prompt: {e}") from e
    ids = tokenizer.apply_chat_template(
        row["prompt"], add_generation_prompt=True, tokenize=True, return_dict=True, enable_thinking=False
    )["input_ids"]
    if len(ids) > config.max_prompt_tokens:
        raise UserError(
            f"{where}: prompt {extra['prompt_id']} has {len(ids)} tokens, max_prompt_tokens is "
            f"{config.max_prompt_tokens}; make the prompts again with a smaller budget or raise it"
        )


def context_of(messages: Sequence[dict[str, Any]]) -> tuple[Message, ...]:
    """What the scorer sees: the conversation without the system prompt."""
    return tuple(Message(role=m["role"], content=m["content"]) for m in messages if m["role"] != "system")


def dimensions_of(extra_info: dict[str, Any]) -> tuple[Dimension, ...]:
    return tuple(Dimension(d) for d in extra_info["dimensions"])


def dimensions_in(path: Path) -> set[Dimension]:
    """What the prompts of a file are rewarded on."""
    import pyarrow.parquet as pq

    extras = pq.read_table(path, columns=["extra_info"]).column(0).to_pylist()
    return {d for extra in extras for d in dimensions_of(extra)}


def count(path: Path) -> int:
    import pyarrow.parquet as pq

    return pq.read_metadata(path).num_rows

"""Stage `score`: the reward model on the rows of a file. Writes <run>/scores.jsonl, a line a row.

Reads JSON lines. A row is a group, {"context": messages, "responses": texts}, or one conversation that ends with
the reply to be scored, {"messages": messages} or {"prompt": messages, "completion": messages}, as `datasets` and
TRL have them. Messages are {"role", "content"}; a system message in front is left out: the reward model reads what
client and therapist said. Optional: `dimensions`, a list of names, or `dimension`, one; further columns are ignored.

Rows that share a beginning, such as the turns of one session, are encoded once where they stand near each other.
A killed stage goes on with the rows that are not scored yet. Rewards are raw logits: only differences within one
context and dimension mean something.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, ValidationError, model_validator
from tqdm import tqdm

from psychepass import records
from psychepass.completion import whole
from psychepass.config import StageConfig, describe, load
from psychepass.errors import UserError
from psychepass.run import StageRun, say, stage_run
from psychepass.schema import Dimension, Record, content_hash
from psychepass.scoring import ScoreGroup, untrained

if TYPE_CHECKING:
    from reward_model.scorer import GroupScorer

OUTPUT = "scores.jsonl"
WINDOW = 256  # rows that are read together, so that they can share trunks
SHAPES = "permitted: context and responses, or messages, or prompt and completion"


class ScoreConfig(StageConfig):
    """`model`: a saved reward model, null for the run's own. `dimensions` are asked of rows that name none."""

    file: str
    model: str | None = None
    dimensions: list[str] = Field(min_length=1)

    @model_validator(mode="after")
    def _check_dimensions(self) -> Self:
        unknown = [d for d in self.dimensions if d not in set(Dimension)]
        if unknown:
            raise ValueError(f"unknown dimension {unknown[0]!r}; permitted: {', '.join(Dimension)}")
        return self


class RowRewards(Record):
    """`row` counts the file's lines from 1; `group` is a hash of what was scored; rewards [response][dimension].

    `untrained`: those of the dimensions that the model was never trained on; null where its card does not say.
    """

    KEY_FIELDS = ("row", "model")
    UNHASHED_FIELDS = Record.UNHASHED_FIELDS | {"untrained"}

    row: int
    group: str
    dimensions: tuple[Dimension, ...]
    rewards: tuple[tuple[float, ...], ...]
    model: str
    untrained: tuple[Dimension, ...] | None = None


def main(config_path: str, overrides: list[str]) -> None:
    config = load(ScoreConfig, config_path, overrides)
    file = Path(config.file)
    folder = Path(config.model) if config.model else Path(config.run) / "reward_model"
    with stage_run("score", config, [file, folder / "reward_model.json"]) as run:
        if run.done:
            return
        try:
            refuse_leftovers(run)
            scorer = _scorer(folder)
            if "rows" not in run.manifest["notes"]:
                rows, asked = check(file, config.dimensions, scorer)
                run.note(rows=rows, model=scorer.name, untrained=untrained(scorer.dimensions, asked))
        except UserError:
            run.abandon()
            raise
        score(file, config.dimensions, scorer, run)


def refuse_leftovers(run: StageRun) -> None:
    """Raises UserError at a first start that finds scores, which may be of another file or model."""
    if run.manifest["starts"] == 1 and (run.dir / OUTPUT).exists():
        raise UserError(
            f"{run.dir / OUTPUT} is there already, and no manifest says what made it; delete it to score anew"
        )


def _scorer(folder: Path) -> GroupScorer:
    import torch

    from reward_model.scorer import GroupScorer

    return GroupScorer.load(folder, "cuda" if torch.cuda.is_available() else "cpu")


def check(file: Path, dimensions: Sequence[str], scorer: GroupScorer) -> tuple[int, set[Dimension]]:
    """How many rows there are, and on what. Raises UserError: a row that cannot be scored, before any is."""
    rows, asked = 0, set[Dimension]()
    for number, group in groups_of(file, dimensions):
        _rendered(scorer, group, f"{file}, line {number}")
        rows += 1
        asked |= set(group.dimensions)
    if not rows:
        raise UserError(f"{file}: no rows; {SHAPES}")
    return rows, asked


def score(file: Path, dimensions: Sequence[str], scorer: GroupScorer, run: StageRun) -> None:
    """Score the rows that <run>/scores.jsonl lacks; a tree's rows are on disk before the next one is begun."""
    if unlearnt := run.manifest["notes"].get("untrained"):
        say(f"score: {scorer.name} was never trained on {', '.join(unlearnt)}; its rewards there mean nothing")
    with records.Appender(run.dir / OUTPUT, RowRewards) as out:
        done = {r.row for r in out.done.values()}
        with tqdm(total=run.manifest["notes"]["rows"], initial=len(done), desc="score", unit="row") as bar:
            left = ((number, group) for number, group in groups_of(file, dimensions) if number not in done)
            while window := list(islice(left, WINDOW)):
                rendered = [_rendered(scorer, group, f"{file}, line {number}") for number, group in window]
                for places, rewards in scorer.trees(rendered):
                    rows = [window[place] for place in places]
                    out.append(*(_record(*row, of_row, scorer) for row, of_row in zip(rows, rewards, strict=True)))
                    bar.update(len(places))
    say(f"score: {run.manifest['notes']['rows']} rows scored by {scorer.name} in {run.dir / OUTPUT}")


def _rendered(scorer: GroupScorer, group: ScoreGroup, where: str) -> Any:
    try:
        return scorer.render(group)
    except UserError as e:
        raise UserError(f"{where}: {e}") from e


def _record(row: int, group: ScoreGroup, rewards: Sequence[Sequence[float]], scorer: GroupScorer) -> RowRewards:
    return RowRewards(
        row=row,
        group=content_hash(group.model_dump(mode="json")),
        dimensions=group.dimensions,
        rewards=tuple(tuple(r) for r in rewards),
        model=scorer.name,
        untrained=untrained(scorer.dimensions, group.dimensions),
    )


def groups_of(file: Path, dimensions: Sequence[str]) -> Iterator[tuple[int, ScoreGroup]]:
    """Line number and group of each row that is not blank. Raises UserError: a line that is no such row."""
    with file.open("rb") as lines:  # json decodes them: a byte order mark is no fault, bytes that are not UTF-8 are one
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            where = f"{file}, line {number}"
            try:
                row = whole(json.loads(line))
            except ValueError as e:
                raise UserError(f"{where}: not JSON ({e}): {line[:80]!r}") from e
            yield number, group_of(row, dimensions, where)


def group_of(row: Any, dimensions: Sequence[str], where: str) -> ScoreGroup:
    """A row as a group; a conversation is a group of one response. Raises UserError."""
    columns = set(row) if isinstance(row, dict) else set()
    if {"context", "responses"} <= columns:
        context, responses = _messages(row["context"], where), row["responses"]
    elif "messages" in columns or {"prompt", "completion"} <= columns:
        names = ("messages",) if "messages" in columns else ("prompt", "completion")
        said = [m for name in names for m in _messages(row[name], where)]
        if not said or said[-1]["role"] != "assistant":
            raise UserError(f"{where}: the conversation's last message must be the assistant's, which is scored")
        context, responses = said[:-1], [said[-1]["content"]]
    else:
        raise UserError(f"{where}: columns {', '.join(sorted(columns)) or 'none'}; {SHAPES}")
    if context and context[0]["role"] == "system":
        context = context[1:]
    asked = row.get("dimensions") or ([row["dimension"]] if row.get("dimension") else dimensions)
    try:
        return ScoreGroup.model_validate({"context": context, "responses": responses, "dimensions": asked})
    except ValidationError as e:
        raise UserError(f"{where}: {describe(e, ScoreGroup)}") from e


def _messages(value: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(m, dict) and {"role", "content"} <= set(m) for m in value):
        raise UserError(f"{where}: {value!r:.80} is no list of messages; permitted: [{{'role', 'content'}}, …]")
    return [{"role": m["role"], "content": m["content"]} for m in value]

"""Which step of a run is final: complete checkpoints and the metrics lines that belong to them."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from psychepass import records

TRACKER = "latest_checkpointed_iteration.txt"  # verl reads the step to resume from here
COMPLETE = "complete"


def append_line(path: Path, line: dict[str, Any]) -> None:
    """One whole line, synced."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as f:
        f.write(json.dumps(line, sort_keys=True, allow_nan=False) + "\n")
        f.flush()
        os.fsync(f.fileno())


def mark_complete(checkpoints: Path, step: int) -> None:
    """Called when every part of a checkpoint is on disk; earlier ones are dropped."""
    records.write_atomic(checkpoints / f"global_step_{step}" / COMPLETE, "")
    settle(checkpoints.parent)


def settle(folder: Path) -> int:
    """Bring grpo/ into the state of its last complete checkpoint; returns that step, 0 without one.

    Half-written and superseded checkpoints go, verl's tracker file names the one that stays, and lines of
    metrics.jsonl and validation.jsonl after it are dropped: their steps will be made again.
    """
    checkpoints = folder / "checkpoints"
    found = {int(p.name.rpartition("_")[2]): p for p in checkpoints.glob("global_step_*")}
    step = max((s for s, p in found.items() if (p / COMPLETE).is_file()), default=0)
    if step:
        records.write_atomic(checkpoints / TRACKER, str(step))
    else:
        (checkpoints / TRACKER).unlink(missing_ok=True)
    for other, path in found.items():
        if other != step:
            shutil.rmtree(path)
    for name in ("metrics.jsonl", "validation.jsonl"):
        _drop_after(folder / name, step)
    return step


def _drop_after(path: Path, step: int) -> None:
    if not path.is_file():
        return
    text = path.read_text(encoding="utf-8")
    lines = text[: text.rfind("\n") + 1].splitlines()
    kept = [line for line in lines if step and json.loads(line)["step"] <= step]
    if len(kept) < len(lines) or not text.endswith("\n"):
        records.write_atomic(path, "".join(line + "\n" for line in kept))

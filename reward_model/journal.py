"""What a training run leaves while it runs: a log line a step, checkpoints that are whole or are not used."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm
from transformers import TrainerCallback

from psychepass import records
from psychepass.errors import UserError

if TYPE_CHECKING:
    from reward_model.trainer import PairTrainer

WHOLE = "whole"  # a file that a checkpoint gets once all of it is there; it holds the number of ranks


def step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; a torn one is deleted."""
    found = sorted(folder.glob("checkpoint-*"), key=step_of)
    for torn in [c for c in found if not (c / WHOLE).is_file()]:
        shutil.rmtree(torn)
        found.remove(torn)
    return found[-1] if found else None


def refuse_other_world(checkpoint: Path, world: int) -> None:
    """Raises UserError: ZeRO's checkpoint is in parts, one a rank, and another number of ranks cannot read it."""
    written = int((checkpoint / WHOLE).read_text())
    if written != world:
        raise UserError(
            f"{checkpoint}: written by {written} ranks of DeepSpeed, but now there are {world}; go on with {written}, "
            f"or delete {checkpoint.parent} to begin again"
        )


class StepLog:
    """train_log.jsonl: one line a step, each step once."""

    def __init__(self, path: Path):
        self.path = path

    def keep_until(self, step: int) -> None:
        """Drop the lines of steps that will be made again, and a torn last line."""
        lines = self.path.read_text().splitlines(keepends=True) if self.path.is_file() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
        records.write_atomic(self.path, "".join(kept))

    def append(self, row: dict[str, Any]) -> None:
        with self.path.open("a") as f:
            f.write(json.dumps(row, sort_keys=True) + "\n")


class Watch(TrainerCallback):
    """Progress bar, log line a step, and the mark of a whole checkpoint; all by rank 0."""

    def __init__(self, trainer: PairTrainer):
        self.trainer = trainer
        self.bar: tqdm | None = None

    def _point_at_best(self, state) -> None:
        """Which epoch is loaded in the end. The Trainer keeps it as a path, which is another one where a run was moved,
        and sets it only where the folder is there: DeepSpeed makes it after that look, and other nodes see it late."""
        if state.best_global_step:
            state.best_model_checkpoint = str(self.trainer.checkpoints / f"checkpoint-{state.best_global_step}")

    def on_train_begin(self, args, state, control, **kwargs):
        self._point_at_best(state)
        if state.is_world_process_zero:
            self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="rm", unit="step")

    def on_step_begin(self, args, state, control, **kwargs):
        self.trainer.begun = time.perf_counter()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "grad_norm" in logs and state.is_world_process_zero:
            self.trainer.step_log.append(logs | {"step": state.global_step})
            if self.bar is not None:
                self.bar.update(state.global_step - self.bar.n)
                self.bar.set_postfix(loss=f"{logs['loss']:.3f}", accuracy=f"{logs['accuracy']:.2f}")

    def on_save(self, args, state, control, **kwargs):
        self.trainer.accelerator.wait_for_everyone()  # each rank writes a part
        self._point_at_best(state)
        if state.is_world_process_zero:
            whole = self.trainer.checkpoints / f"checkpoint-{state.global_step}" / WHOLE
            records.write_atomic(whole, f"{self.trainer.world}\n")

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()

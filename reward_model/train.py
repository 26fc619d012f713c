"""Stage `rm`: train the Bradley-Terry reward model with the Hugging Face Trainer (paper, section 3.3 and D.3).

A step is `clients_per_step` clients: their sessions are encoded once, and all their pairs read those rewards. A
killed run goes on from its last whole checkpoint (one an epoch). launch/rm.sh starts several processes, over
which a step's windows are dealt; rank 0 alone holds the run's lock, writes and speaks.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from psychepass import records
from psychepass.config import Config, TrackedConfig, load
from psychepass.errors import UserError
from psychepass.run import StageRun, say, stage_run
from psychepass.schema import Dimension, PreferencePair
from psychepass.scoring import untrained
from reward_model.inputs import sessions_of, without

if TYPE_CHECKING:
    from reward_model.model import Card

FOLDER = "reward_model"
LOG = "train_log.jsonl"
CHECKPOINTS = "checkpoints"
Precision = Literal["fp32", "bf16"]


class LoRA(Config):
    """Adapters of `rank` on every linear layer of the backbone, scaled by alpha / rank."""

    rank: int = Field(ge=1)
    alpha: int = Field(ge=1)


class RMConfig(TrackedConfig):
    """`base` is a folder, `smollm2` (bundled) or a hub name. `layers`: how many of its lower layers make the
    backbone; `train_layers`: how many of those, from the top, are trained (null: all). `max_response` tokens
    of `max_length` are kept for the reply that is scored. `two_pass` recomputes each session for its gradient:
    the memory of one window instead of a whole step's; false needs one process. `validation_clients` of the
    train clients are held aside to choose the epoch; with 0 the last epoch is kept. `head_learning_rate`: null
    means `learning_rate`. `pairs_per_step`: the paper's step, so many pairs whoever their clients are, instead of
    `clients_per_step`. `lora`: train adapters and the head alone, merged on save; with bf16 the frozen weights are
    bf16. `gradient_checkpointing`: of each layer its input and its attention are kept, the rest is computed again; in
    one process, where that of all sessions fits, one pass with it costs less than two. `deepspeed`: a ZeRO-3 JSON, or
    null for whole weights on every rank.
    `leave_out`: a therapist whose pairs, and those of others with its weights, are not trained on; rm-eval then
    shows the accuracy on a therapist that the model never saw.
    """

    base: str
    layers: int | None = Field(default=None, ge=1)
    train_layers: int | None = Field(default=None, ge=0)
    max_length: int = Field(ge=32)
    max_response: int = Field(ge=8)
    precision: Precision
    learning_rate: float = Field(gt=0)
    head_learning_rate: float | None = Field(default=None, gt=0)
    warmup_ratio: float = Field(ge=0, lt=1)
    weight_decay: float = Field(ge=0)
    max_grad_norm: float = Field(gt=0)
    epochs: int = Field(ge=1)
    clients_per_step: int = Field(ge=1)
    two_pass: bool
    centering: float = Field(ge=0)
    validation_clients: int = Field(ge=0)
    leave_out: str | None = None
    pairs_per_step: int | None = Field(default=None, ge=1)
    lora: LoRA | None = None
    gradient_checkpointing: bool = False
    deepspeed: str | None = None

    @model_validator(mode="after")
    def _one_choice_of_weights(self) -> RMConfig:
        if self.lora and self.train_layers is not None:
            raise ValueError(
                f"lora trains adapters on every layer, so train_layers must be null, not {self.train_layers}"
            )
        return self


def main(config_path: str, overrides: list[str]) -> None:
    config = load(RMConfig, config_path, overrides)
    run_dir = Path(config.run)
    inputs = [run_dir / "pairs.jsonl", run_dir / "sessions.jsonl"]
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1 and not config.two_pass:
        raise UserError(f"{config_path}: two_pass is false, which needs one process, but WORLD_SIZE is {world}")
    with stage_run("rm", config, inputs, rank=rank) as run:
        if run.done:
            return
        folder = run_dir / FOLDER
        if "model" not in run.manifest.get("notes", {}):  # a kill may come between the model's card and this note
            try:
                if rank == 0:
                    refuse_leftovers(run, folder)
                train(config, run, folder, rank)
            except UserError:
                if rank == 0 and not (folder / LOG).is_file():
                    run.abandon()
                raise
        if rank == 0:
            shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def refuse_leftovers(run: StageRun, folder: Path) -> None:
    """Raises UserError at a first start that finds a model or checkpoints, which other values may have made."""
    found = [folder / "reward_model.json", *sorted((folder / CHECKPOINTS).glob("checkpoint-*"))]
    found = [path for path in found if path.exists()]
    if found and run.manifest["starts"] == 1:
        run.abandon()
        raise UserError(
            f"{found[0]} is there already, and no manifest says what made it; delete {folder} to train anew"
        )


def train(config: RMConfig, run: StageRun, folder: Path, rank: int) -> None:
    """Train, choose the epoch, save the model and its card."""
    pairs = [p for p in records.read(run.dir / "pairs.jsonl", PreferencePair) if p.split == "train"]
    sessions = sessions_of(pairs, run.dir / "sessions.jsonl")
    n_all = len(pairs)
    if config.leave_out is not None:
        pairs = without(config.leave_out, pairs, sessions)
    clients = {p.profile_id for p in pairs}
    if len(clients) <= config.validation_clients:
        raise UserError(
            f"{run.dir}/pairs.jsonl has pairs of {len(clients)} train clients; validation_clients = "
            f"{config.validation_clients} leaves none to train on"
        )
    os.environ |= {"WANDB_MODE": config.wandb or "disabled", "WANDB_DIR": str(folder)}
    os.environ.setdefault("WANDB_PROJECT", "psychepass")
    os.environ.setdefault("WANDB_X_SERVICE_WAIT", "300")  # its own process is given 30 s to start otherwise

    from reward_model.fit import fit

    if rank == 0:
        say(f"rm: {len(pairs)} pairs of {len(clients)} clients, {len(sessions)} sessions; base {config.base}")
    card, selection = fit(config, pairs, sessions, folder)
    if card is None:
        return
    run.note(model=card.model, epoch=selection.epoch, validation=selection.validation)
    run.note(pairs=len(pairs), pairs_left_out=n_all - len(pairs), read=asdict(selection.read))
    say(f"rm: {card.model} in {folder}")


def write_card(
    folder: Path, config: RMConfig, card: Card, epoch: float, n_pairs: int, n_clients: int, imported: bool
) -> None:
    """The model card: what the scores mean, and what they do not. Nothing is known of who speaks in imported pairs."""
    if imported:
        data = f"{n_pairs} imported pairs of {n_clients} clients"
        words = "The scores repeat what was preferred in the imported pairs, not therapeutic competence."
        told = ""
    else:
        data = f"{n_pairs} judged pairs of {n_clients} fictional clients"
        words = (
            "The scores repeat what a judge preferred; a reference judge's verdicts describe text features, not "
            "therapeutic competence."
        )
        told = "Clients are fictional; replies are machine-written and may be harmful. "
    validated = f"epoch {epoch:g}, chosen on {config.validation_clients} train clients held aside"
    kept = validated if config.validation_clients else f"the last of {config.epochs} epochs, fixed beforehand"
    unlearnt = untrained(card.dimensions, Dimension)
    warned = f" (it answers for {', '.join(unlearnt)} too, which it never learnt)" if unlearnt else ""
    records.write_atomic(
        folder / "README.md",
        f"""---
license: apache-2.0
base_model: {config.base}
tags: [reward-model, psychepass]
---
# PsychePass reward model {card.model}

Gives a raw score to (conversation, reply, dimension); only the difference of two scores on the same conversation and
dimension means something. Trained on {", ".join(card.dimensions or ())}{warned}.
Base {config.base}, {card.layers} layers and a scalar fp32 head; Bradley-Terry loss on {data}; {kept}.
Accuracy on test clients, beside its baselines: metrics.json. Loss by step: {LOG}.

Load with `reward_model.model.load(folder)`, or serve with `psychepass serve-rm`.

Research software. {told}Not for use with people in distress; does not replace a clinician.
{words} If someone may be in danger, contact local emergency services.
""",
    )

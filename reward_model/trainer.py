"""The Hugging Face Trainer for packed sessions: a step's loss, its log, its checkpoints, the choice of an epoch."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tqdm import tqdm
from transformers import AutoTokenizer, PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from psychepass import records, weights
from psychepass.errors import UserError
from psychepass.matmul import fast_fp32
from psychepass.schema import PreferencePair, Session, content_hash
from reward_model import model as models
from reward_model.data import ClientStep, client_steps, join
from reward_model.loss import PairLoss, pair_loss
from reward_model.model import RewardModel
from reward_model.train import CHECKPOINTS, LOG, RMConfig, write_card
from training.render import Renderer

WHOLE = "whole"  # a file that a checkpoint gets once all of it is there


class Selection(NamedTuple):
    """The epoch that was kept; `validation` maps epochs to accuracies on clients held aside."""

    epoch: float
    validation: dict[str, float]


def fit(
    config: RMConfig, pairs: Sequence[PreferencePair], sessions: Mapping[str, Session], folder: Path
) -> tuple[models.Card, Selection]:
    """Train on `pairs`, or go on from the last whole checkpoint under `folder`, and save there."""
    if torch.cuda.device_count() > 1:
        raise UserError(f"stage rm trains on one GPU in this version, {torch.cuda.device_count()} are visible")
    fast_fp32()
    path = weights.resolve(config.base)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = models.from_base(path, config.layers, config.seed)
    model.train_top(config.train_layers)
    steps = client_steps(pairs, sessions, Renderer(tokenizer, config.max_length, config.max_response))
    held = held_aside([s.profile_id for s in steps], config.validation_clients)
    trainer = PairTrainer(
        config,
        folder,
        model,
        [s for s in steps if s.profile_id not in held],
        [s for s in steps if s.profile_id in held],
    )
    checkpoint = last_whole_checkpoint(folder / CHECKPOINTS)
    trainer.step_log.keep_until(_step_of(checkpoint) if checkpoint else 0)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    selection = _selection(trainer)
    card = models.save(model, tokenizer, folder, config.base, config.max_length, config.max_response)
    write_card(folder, config, card, selection.epoch, len(pairs), len(steps))
    models.finish(model, folder, card)
    return card, selection


def held_aside(clients: Sequence[str], count: int) -> set[str]:
    """`count` clients for validation: the first by hash of their id, whatever the order of `clients`."""
    return set(sorted(clients, key=content_hash)[:count])


def _selection(trainer: PairTrainer) -> Selection:
    by_step = {h["step"]: h for h in trainer.state.log_history if "eval_accuracy" in h}
    best = by_step.get(trainer.state.best_global_step or -1)
    epoch = best["epoch"] if best else trainer.state.epoch or 0.0
    return Selection(round(epoch, 6), {f"{h['epoch']:g}": h["eval_accuracy"] for h in by_step.values()})


# --- checkpoints -------------------------------------------------------------------------------


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end; a torn one is deleted."""
    found = sorted(folder.glob("checkpoint-*"), key=_step_of)
    for torn in [c for c in found if not (c / WHOLE).is_file()]:
        shutil.rmtree(torn)
        found.remove(torn)
    return found[-1] if found else None


# --- the log -----------------------------------------------------------------------------------


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
    """Progress bar, log line a step, and the mark of a whole checkpoint."""

    def __init__(self, trainer: PairTrainer):
        self.trainer = trainer
        self.bar: tqdm | None = None
        self.begun = 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="rm", unit="step")

    def on_step_begin(self, args, state, control, **kwargs):
        self.begun = time.perf_counter()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if logs and "grad_norm" in logs:
            seconds = round(time.perf_counter() - self.begun, 3)
            facts = {k: logs[k] for k in ("grad_norm", "learning_rate")} | self.trainer.facts
            self.trainer.step_log.append({"step": state.global_step, "epoch": state.epoch, "seconds": seconds} | facts)
            if self.bar is not None:
                self.bar.update(state.global_step - self.bar.n)
                self.bar.set_postfix(loss=f"{facts['loss']:.3f}", accuracy=f"{facts['accuracy']:.2f}")

    def on_save(self, args, state, control, **kwargs):
        records.write_atomic(self.trainer.checkpoints / f"checkpoint-{state.global_step}" / WHOLE, "\n")

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()


# --- training ----------------------------------------------------------------------------------


class PairTrainer(Trainer):
    """Its items are ClientSteps; `facts` are the last step's loss, accuracy, margin, pairs and tokens."""

    def __init__(
        self,
        config: RMConfig,
        folder: Path,
        model: RewardModel,
        train: Sequence[ClientStep],
        validation: Sequence[ClientStep],
    ):
        self.config = config
        self.validation = list(validation)
        self.facts: dict[str, float] = {}
        self.step_log = StepLog(folder / LOG)
        self.checkpoints = folder / CHECKPOINTS
        super().__init__(
            model=model,
            args=_arguments(config, folder, validated=bool(validation)),
            train_dataset=list(train),  # type: ignore[arg-type]  # any sequence will do
            eval_dataset=list(validation) or None,  # type: ignore[arg-type]
            data_collator=lambda steps: {"step": join(steps)},
        )
        self.remove_callback(PrinterCallback)  # the bar and train_log.jsonl say it
        self.add_callback(Watch(self))

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """AdamW; no decay on norms and head; the head, which starts from nothing, may learn at its own rate."""
        assert isinstance(self.model, RewardModel)
        backbone = [p for p in self.model.backbone.parameters() if p.requires_grad]
        rate = self.config.learning_rate
        groups = [
            {"params": [p for p in backbone if p.ndim > 1], "weight_decay": self.config.weight_decay, "lr": rate},
            {"params": [p for p in backbone if p.ndim <= 1], "weight_decay": 0.0, "lr": rate},
            {
                "params": [self.model.head.weight],
                "weight_decay": 0.0,
                "lr": self.config.head_learning_rate or rate,
            },
        ]
        self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]])
        return self.optimizer

    def training_step(self, model, inputs: dict[str, Any], num_items_in_batch=None) -> torch.Tensor:
        """Gradients of the loss over all pairs of the step; see RMConfig.two_pass. Dropout is off."""
        model.eval()
        step: ClientStep = inputs["step"]
        if self.config.two_pass:
            with torch.no_grad():
                rewards_S = self._rewards(model, step)
            rewards_S.requires_grad_()
            result = self._pair_loss(rewards_S, step)
            (slopes_S,) = torch.autograd.grad(result.loss, rewards_S)
            self._backward_by_window(model, step, slopes_S)
        else:
            result = self._pair_loss(self._rewards(model, step), step)
            self.accelerator.backward(result.loss)
        self.facts = _facts(result, step)
        return result.loss.detach()

    def _backward_by_window(self, model, step: ClientStep, slopes_S: torch.Tensor) -> None:
        """Second pass: the gradient of sum(dL/dr r), one window's graph at a time."""
        done = 0
        for tree in step.trees:
            slopes = slopes_S[done : done + len(tree.score_index_S)]
            done += len(slopes)
            with self.compute_loss_context_manager():
                rewards = model(tree.to(self.args.device))
            self.accelerator.backward((slopes * rewards).sum())

    def _rewards(self, model, step: ClientStep) -> torch.Tensor:
        with self.compute_loss_context_manager():
            return torch.cat([model(tree.to(self.args.device)) for tree in step.trees])

    def _pair_loss(self, rewards_S: torch.Tensor, step: ClientStep) -> PairLoss:
        chosen_PS, rejected_PS, weight_P = (
            t.to(rewards_S.device) for t in (step.chosen_PS, step.rejected_PS, step.weight_P)
        )
        return pair_loss(rewards_S, chosen_PS, rejected_PS, weight_P, self.config.centering)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """Loss and accuracy over the clients held aside, each client weighing the same."""
        assert isinstance(self.model, torch.nn.Module)
        self.model.eval()
        with torch.no_grad():
            results = [self._pair_loss(self._rewards(self.model, s), s) for s in self.validation]
        metrics = {
            f"{metric_key_prefix}_loss": sum(float(r.loss.detach()) for r in results) / len(results),
            f"{metric_key_prefix}_accuracy": sum(r.accuracy for r in results) / len(results),
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def _facts(result: PairLoss, step: ClientStep) -> dict[str, float]:
    facts = {"loss": float(result.loss.detach()), "accuracy": result.accuracy, "margin": result.margin}
    return facts | {"pairs": len(step.weight_P), "tokens": step.tokens}


def _arguments(config: RMConfig, folder: Path, validated: bool) -> TrainingArguments:
    """The Trainer's arguments: cosine schedule, a checkpoint an epoch, and of them the best where validated."""
    return TrainingArguments(
        output_dir=str(folder / CHECKPOINTS),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.clients_per_step,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup_ratio,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        bf16=config.precision == "bf16",
        use_cpu=not torch.cuda.is_available(),
        seed=config.seed,
        save_strategy=SaveStrategy.EPOCH,
        save_total_limit=2,
        eval_strategy="epoch" if validated else "no",
        load_best_model_at_end=validated,
        metric_for_best_model="eval_accuracy" if validated else None,
        logging_steps=1,
        report_to=["wandb"] if config.wandb else [],
        run_name=config.run,
        remove_unused_columns=False,
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )

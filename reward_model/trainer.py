"""The Hugging Face Trainer for packed sessions: a step's loss and gradient, over one process or many."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import broadcast_object_list
from torch.utils.data import DataLoader, RandomSampler
from transformers import PrinterCallback, Trainer, TrainingArguments
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.trainer_utils import SaveStrategy

from psychepass.errors import UserError
from reward_model import curves, lora
from reward_model import model as models
from reward_model.data import ClientStep, join
from reward_model.journal import StepLog, Watch, last_whole_checkpoint, refuse_other_world, step_of
from reward_model.loss import PairLoss, pair_loss
from reward_model.model import RewardModel
from reward_model.packing import Packed
from reward_model.ranks import (
    deepspeed_config,
    gather,
    hand_of,
    padding,
    prepare_cpu_ranks,
    score_slices,
)
from reward_model.train import CHECKPOINTS, LOG, RMConfig


class PairTrainer(Trainer):
    """`encode` makes a step of some items of `train`; by default they are clients' steps already.

    `facts` are the last step's, of reward_model.curves; `begun` is when it began.
    """

    def __init__(
        self,
        config: RMConfig,
        arguments: TrainingArguments,
        folder: Path,
        model: RewardModel,
        train: Sequence[Any],
        validation: Sequence[ClientStep],
        encode: Callable[[Sequence[Any]], ClientStep] = join,
    ):
        self.config = config
        self.rank, self.world = arguments.process_index, arguments.world_size
        self.validation = list(validation)
        self.facts: dict[str, float] = {}
        self.flops, self.begun = 0.0, time.perf_counter()
        peak = curves.peak_flops(arguments.device, config.precision)
        self.peak = peak and peak * self.world
        self.step_log = StepLog(folder / LOG)
        self.checkpoints = folder / CHECKPOINTS
        super().__init__(
            model=model,
            args=arguments,
            train_dataset=list(train),  # type: ignore[arg-type]  # any sequence will do
            eval_dataset=list(validation) or None,  # type: ignore[arg-type]
            data_collator=lambda items: {"step": encode(items)},
        )
        self.remove_callback(PrinterCallback)  # the bar and train_log.jsonl say it
        self.add_callback(Watch(self))

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """AdamW; no decay on norms and head; the head, which starts from nothing, may learn at its own rate."""
        assert isinstance(self.model, RewardModel)
        backbone = [p for p in self.model.backbone.parameters() if p.requires_grad]
        rate = self.config.learning_rate

        def flat(parameter: torch.nn.Parameter) -> bool:
            return len(getattr(parameter, "ds_shape", parameter.shape)) <= 1  # ZeRO-3's own part is always flat

        groups = [
            {"params": [p for p in backbone if not flat(p)], "weight_decay": self.config.weight_decay, "lr": rate},
            {"params": [p for p in backbone if flat(p)], "weight_decay": 0.0, "lr": rate},
            {
                "params": [self.model.head.weight],
                "weight_decay": 0.0,
                "lr": self.config.head_learning_rate or rate,
            },
        ]
        self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]])
        return self.optimizer

    def get_train_dataloader(self) -> DataLoader:
        """Every rank draws the same clients: the windows of a step are dealt to the ranks, not the steps."""
        items: Any = self.train_dataset
        loader = DataLoader(
            items,
            batch_size=self.args.train_batch_size,
            sampler=RandomSampler(items),
            collate_fn=self.data_collator,
        )
        return prepare_data_loader(
            loader, num_processes=1, process_index=0, use_seedable_sampler=True, data_seed=self.config.seed
        )

    def resume_point(self) -> str | None:
        """The checkpoint to go on from, which rank 0 looks up; the log then ends where it does."""
        found: list[str | None] = [None]
        if self.rank == 0:
            checkpoint = last_whole_checkpoint(self.checkpoints)
            if checkpoint and self.is_deepspeed_enabled:
                refuse_other_world(checkpoint, self.world)
            self.step_log.keep_until(step_of(checkpoint) if checkpoint else 0)
            found = [str(checkpoint) if checkpoint else None]
        return broadcast_object_list(found)[0]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """A checkpoint's weights; DeepSpeed's own parts hold them, and a gathered copy would be read by nobody."""
        if not self.is_deepspeed_enabled:
            super().save_model(output_dir, _internal_call)

    def whole_model(self) -> RewardModel:
        """The trained model with all of its weights; under ZeRO-3 gathered, and for rank 0 only."""
        model = self.model
        assert isinstance(model, RewardModel)
        if not self.is_deepspeed_enabled:
            if self.config.lora:
                lora.merge(model)
            return model
        state: Any = self.accelerator.get_state_dict(self.model_wrapped)
        head = models.gathered(model.head.weight)
        unset_hf_deepspeed_config()  # what is made from here on is not parted
        if self.rank > 0:
            return model
        assert torch.equal(state["head.weight"].cpu(), head), "the gathered head differs from the one trained"
        whole = models.empty(model.backbone.config)
        if self.config.lora:
            lora.add(whole, self.config.lora.rank, self.config.lora.alpha, self.config.seed)
        whole.load_state_dict(state, assign=True)
        if self.config.lora:
            lora.merge(whole)
        return whole

    def training_step(self, model, inputs: dict[str, Any], num_items_in_batch=None) -> torch.Tensor:
        """Gradients of the loss over all pairs of the step; see RMConfig.two_pass. The model has no dropout."""
        model.train(self.config.gradient_checkpointing)  # layers are recomputed in this mode alone
        step: ClientStep = inputs["step"]
        if self.config.two_pass:
            with torch.no_grad():
                rewards_S = self._rewards(model, step)
            rewards_S.requires_grad_()
            result = self._pair_loss(rewards_S, step)
            (slopes_S,) = torch.autograd.grad(result.loss, rewards_S)
            self._backward_by_window(model, step, slopes_S)
        else:
            rewards_S = self._rewards(model, step)
            result = self._pair_loss(rewards_S, step)
            self.accelerator.backward(result.loss)
        loss = result.loss.detach()
        if not torch.isfinite(loss):
            raise UserError(
                f"the loss of step {self.state.global_step + 1} (clients {step.profile_id}) is {float(loss)}; lower "
                f"learning_rate ({self.config.learning_rate}), or use precision: fp32"
            )
        self.facts = curves.step_facts(result, rewards_S, step)
        self.flops = curves.training_flops(self.model, step.trees) if self.peak else 0.0  # type: ignore[arg-type]
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """W&B shows of a step what train_log.jsonl holds of it."""
        if "grad_norm" in logs:
            seconds = time.perf_counter() - self.begun
            logs |= self.facts | curves.step_speed(self.facts, seconds, self.flops, self.peak)
        super().log(logs, start_time)

    def _backward_by_window(self, model, step: ClientStep, slopes_S: torch.Tensor) -> None:
        """Second pass: the gradient of sum(dL/dr r), one window's graph at a time, over all ranks.

        Ranks average their gradients in the last window's backward, hence the factor: the sum is wanted.
        """
        slices = score_slices(step.trees)
        hand = hand_of(step.trees, self.rank, self.world)
        for place, window in enumerate(hand, start=1):
            last = place == len(hand)
            self.accelerator.gradient_state._set_sync_gradients(last)
            with nullcontext() if last else self.accelerator.no_sync(model):
                if window is None:
                    surrogate = 0.0 * self._reward(model, padding()).sum()
                else:
                    surrogate = (slopes_S[slices[window]] * self._reward(model, step.trees[window])).sum()
                self.accelerator.backward(self.world * surrogate)

    def _rewards(self, model, step: ClientStep) -> torch.Tensor:
        """All rewards [S] of the step, on every rank; differentiable in one process only."""
        if self.world == 1:
            return torch.cat([self._reward(model, tree) for tree in step.trees])
        slices = score_slices(step.trees)
        rewards_S = torch.zeros(slices[-1].stop, device=self.args.device)
        for window in hand_of(step.trees, self.rank, self.world):
            if window is None:
                self._reward(model, padding())
            else:
                rewards_S[slices[window]] = self._reward(model, step.trees[window])
        return gather(rewards_S)

    def _reward(self, model, tree: Packed) -> torch.Tensor:
        with self.compute_loss_context_manager():
            return model(tree.to(self.args.device))

    def _pair_loss(self, rewards_S: torch.Tensor, step: ClientStep) -> PairLoss:
        chosen_PS, rejected_PS, weight_P = (
            t.to(rewards_S.device) for t in (step.chosen_PS, step.rejected_PS, step.weight_P)
        )
        return pair_loss(rewards_S, chosen_PS, rejected_PS, weight_P, self.config.centering)

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """Loss and accuracy over the clients held aside, each client weighing the same."""
        model: Any = self.model_wrapped
        assert isinstance(model, torch.nn.Module)
        model.eval()
        with torch.no_grad():
            results = [self._pair_loss(self._rewards(model, s), s) for s in self.validation]
        metrics = {
            f"{metric_key_prefix}_loss": sum(float(r.loss.detach()) for r in results) / len(results),
            f"{metric_key_prefix}_accuracy": sum(r.accuracy for r in results) / len(results),
        }
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def training_arguments(config: RMConfig, folder: Path, validated: bool) -> TrainingArguments:
    """The Trainer's arguments; making them starts the process group.

    Cosine schedule, a checkpoint an epoch, and of these the best where validated.
    """
    prepare_cpu_ranks()
    bf16 = config.precision == "bf16"
    deepspeed = deepspeed_config(config.deepspeed, bf16) if config.deepspeed else None
    return TrainingArguments(
        output_dir=str(folder / CHECKPOINTS),
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.pairs_per_step or config.clients_per_step,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup_ratio,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        bf16=bf16 and not deepspeed,
        deepspeed=deepspeed,
        accelerator_config={"use_configured_state": bool(deepspeed) and not torch.cuda.is_available()},
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
        ddp_find_unused_parameters=False,
    )

"""The real TRL RewardTrainer on the rows of preference_rows, with its max_length raised; trl comes with `dev`."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import torch

from psychepass.schema import PreferencePair, Session
from reward_model.model import RewardModel
from tests.benchmarks.measure import Cost, Job, sample
from tests.tiny import tiny_tokenizer
from training.pairs import preference_rows

INSTALLED = find_spec("trl") is not None


def classifier(model: RewardModel) -> torch.nn.Module:
    """transformers' own sequence classifier with the very weights of `model`, in its dtype, with SDPA."""
    from transformers import AutoModelForSequenceClassification

    config = type(model.backbone.config).from_dict(model.backbone.config.to_dict())
    config.num_labels, config.pad_token_id = 1, tiny_tokenizer().pad_token_id
    dtype = next(model.backbone.parameters()).dtype
    built = AutoModelForSequenceClassification.from_config(config, attn_implementation="sdpa", dtype=dtype)
    built.model.load_state_dict(model.backbone.state_dict())
    built.score.load_state_dict(model.head.state_dict())
    return built.to(next(model.parameters()).device)


def trainer_of(
    model: RewardModel,
    pairs: Sequence[PreferencePair],
    sessions: Mapping[str, Session],
    longest: int,
    checkpointing: bool,
) -> Any:
    """A RewardTrainer of `classifier(model)`. TRL filters rows over max_length; none is lost here."""
    from datasets import Dataset, disable_progress_bars
    from trl import RewardConfig, RewardTrainer

    disable_progress_bars()
    config = RewardConfig(
        output_dir=tempfile.mkdtemp(prefix="trl-"),
        max_length=2 * longest,
        per_device_train_batch_size=1,
        gradient_checkpointing=checkpointing,
        bf16=False,  # the weights have the dtype that is measured
        use_cpu=next(model.parameters()).device.type == "cpu",
        report_to=[],
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=0,
    )
    data = Dataset.from_list([{k: row[k] for k in ("chosen", "rejected")} for row in preference_rows(pairs, sessions)])
    trainer = RewardTrainer(model=classifier(model), args=config, train_dataset=data, processing_class=tiny_tokenizer())
    trainer.current_gradient_accumulation_steps = 1  # train() would set it
    prepared = trainer.train_dataset
    assert len(prepared) == len(data), f"TRL lost {len(data) - len(prepared)} of {len(data)} rows"
    return trainer


def job(
    model: RewardModel,
    pairs: Sequence[PreferencePair],
    sessions: Mapping[str, Session],
    longest: int,
    rows: int,
    checkpointing: bool,
) -> Job:
    """Forward and backward of a sample of `rows` rows, one row (two sequences, padded alike) a batch.

    The FLOPs count real tokens, not padding.
    """
    trainer = trainer_of(model, pairs, sessions, longest, checkpointing)
    prepared = trainer.train_dataset
    cost = Cost(model)
    flops = [
        3 * (cost.sequence(len(chosen)) + cost.sequence(len(rejected)))
        for chosen, rejected in zip(prepared["chosen_ids"], prepared["rejected_ids"], strict=True)
    ]
    few = sample(range(len(flops)), flops, rows)
    batches = [trainer.data_collator([prepared[i]]) for i in few]
    flops_run = sum(flops[i] for i in few)

    def run() -> None:
        for batch in batches:
            trainer.training_step(trainer.model, dict(batch))
        trainer.model.zero_grad()

    return Job("TRL RewardTrainer", run, sum(flops), flops_run, f"{rows} rows" if rows < len(flops) else "")

"""verl's synchronous trainer with what the protocol adds: checked groups, the likelihood guard, and one
line of metrics a step that a kill can neither lose nor double."""

from __future__ import annotations

import json
import math
import time
from collections import defaultdict
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import torch
import transfer_queue as tq
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.utils import tensordict_utils as tu

from psychepass.errors import UserError
from rl import checkpoints
from rl.prompts import SOURCE
from rl.reward import guard

SECONDS = {"gen": "rollout", "old_log_prob": "old_log_prob", "ref": "reference", "update_actor": "update"}
SECONDS |= {"update_weights": "weights", "testing": "validation"}
Sync: Any = PPOTrainerSync  # verl's decorator hides the type
SAID = ("prompts", "responses", "rollout_log_probs")  # equal replies differ in the last digits of the third
VALIDATION = f"val-core/{SOURCE}/reward/mean@1"


class CheckedReplayBuffer(ReplayBuffer):
    """verl trains on what is left of a group when samples fail, and scores a missing one as if it were not
    there; here a failed sample stops the run, which can be resumed."""

    def __init__(self, *args: Any, sampler_kwargs: Any, **kwargs: Any):
        super().__init__(*args, sampler_kwargs=sampler_kwargs, **kwargs)
        self.poll_interval = sampler_kwargs["poll_interval_s"]
        self.responses = sampler_kwargs["responses"]
        self.timeout_s = sampler_kwargs["timeout_s"]
        self._deadline = 0.0

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[KVBatchMeta, dict]:
        """Raises UserError with the first reason where a reply has no reward, and where the rollout hangs."""
        self._deadline = time.monotonic() + self.timeout_s
        batch, metrics = super().sample(global_steps, partition_id, batch_size)
        expected = batch_size * (self.responses if partition_id == "train" else 1)
        errors = [f["error"] for f in _fields(batch, "extra_fields") if "error" in f]
        if errors:
            raise UserError(f"step {global_steps}: {len(errors)} of {expected} replies have no reward: {errors[0]}")
        if len(batch.keys) != expected:
            raise UserError(f"step {global_steps}: {len(batch.keys)} replies came, {expected} were asked for")
        return batch, metrics

    def _wait_for_next_poll(self, partition_id: str, last_debug_time: float) -> float:
        if time.monotonic() > self._deadline:
            left = len(self.pending_keys[partition_id]) + len(self.running_keys[partition_id])
            raise UserError(f"{left} {partition_id} groups were not sampled and scored within {self.timeout_s:g} s")
        return super()._wait_for_next_poll(partition_id, last_debug_time)


class GRPOTrainer(Sync):
    """`folder` is grpo/ of the run; `band` the likelihood guard's, None without a guard."""

    def __init__(self, config: Any, folder: Path, band: tuple[float, float] | None):
        super().__init__(config)
        self.folder, self.band = folder, band
        self._save_due = False
        self._guarded_share = 0.0

    # verl's hooks: the logger exists from the first of these on
    def on_validate_begin(self) -> None:
        self.logger.logger.setdefault("psychepass", self)

    def on_train_begin(self) -> None:
        self.logger.logger.setdefault("psychepass", self)

    def log(self, data: dict[str, Any], step: int) -> None:
        """What verl calls once a step, and once before the first if it validates there. The line is on disk
        before the checkpoint that makes its step final."""
        if VALIDATION in data:
            checkpoints.append_line(
                self.folder / "validation.jsonl", {"step": step, "reward_mean": float(data[VALIDATION])}
            )
        if "training/global_step" in data:
            checkpoints.append_line(self.folder / "metrics.jsonl", self._line(data, step))
        if self._save_due:
            self._save_due = False
            super()._save_checkpoint()
            checkpoints.mark_complete(self.folder / "checkpoints", step)

    def _save_checkpoint(self) -> None:
        self._save_due = True

    def _balance_batch(self, batch: KVBatchMeta, metrics: dict, *args: Any, **kwargs: Any) -> KVBatchMeta:
        """On CPUs siblings stay together, because they share their prompt in the forward pass; and by what they say,
        not by their random keys, so that a run can be made again to the last digit."""
        batch = super()._balance_batch(batch, metrics, *args, **kwargs)
        if self.config.trainer.device == "cpu":
            said = _get(batch, *SAID)
            rows_B = list(zip(*([row.tolist() for row in said[name].unbind(0)] for name in SAID), strict=True))
            batch.reorder(sorted(range(len(rows_B)), key=rows_B.__getitem__))
        return batch

    def _compute_advantage(self, batch: KVBatchMeta, metrics: dict) -> KVBatchMeta:
        if self.band is not None:
            self._guard(batch, self.band)
        return super()._compute_advantage(batch, metrics)

    def _guard(self, batch: KVBatchMeta, band: tuple[float, float]) -> None:
        data = _get(batch, "uid", "ref_log_prob", "rm_scores")
        logprobs_B = [row.mean().item() for row in data["ref_log_prob"].unbind(0)]
        scores_B = [row.sum().item() for row in data["rm_scores"].unbind(0)]
        guarded_B, outside_B = guard(scores_B, logprobs_B, [str(u) for u in list(data["uid"])], band)
        rows = []
        for row, score in zip(data["rm_scores"].unbind(0), guarded_B, strict=True):
            rows.append(torch.zeros_like(row))
            rows[-1][-1] = score
        scores = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
        fields = tu.get_tensordict({"rm_scores": scores})
        tq.kv_batch_put(keys=batch.keys, partition_id=batch.partition_id or "train", fields=fields)
        self._guarded_share = sum(outside_B) / len(outside_B)

    def _compute_metrics(self, batch: KVBatchMeta, metrics: dict, timing_raw: dict, *args: Any, **kwargs: Any) -> None:
        super()._compute_metrics(batch, metrics, timing_raw, *args, **kwargs)
        fields = _fields(batch, "extra_fields")
        raw_B = [f["reward_extra_info"]["raw_reward"] for f in fields]
        by_dimension: dict[str, list[float]] = defaultdict(list)
        for f in fields:
            for dimension, value in f["raw_rewards"].items():
                by_dimension[dimension].append(value)
        metrics["psychepass"] = {
            "reward_mean": fmean(raw_B),
            "reward_std": pstdev(raw_B),
            "rewards": {d: fmean(v) for d, v in sorted(by_dimension.items())},
            "truncated_share": fmean(float(f["truncated"]) for f in fields),
            "guarded_share": self._guarded_share,
            "seconds": timing_raw["step"] + timing_raw.get("testing", 0.0),
            "seconds_by_part": {name: timing_raw[key] for key, name in SECONDS.items() if key in timing_raw},
        }

    def _line(self, data: dict[str, Any], step: int) -> dict[str, Any]:
        """A line of metrics.jsonl. prob_diff is |p_trainer - p_rollout| over the sampled tokens."""
        old = "training/rollout_probs_diff_"
        norm = float(data["actor/grad_norm"])
        line = {
            "step": step,
            "epoch": data["training/epoch"],
            **data.pop("psychepass"),
            "kl_loss": data["actor/kl_loss"],
            "pg_loss": data["actor/pg_loss"],
            "clip_share": data["actor/pg_clipfrac"],
            "grad_norm": norm if math.isfinite(norm) else None,  # verl then leaves the weights as they are
            "learning_rate": data["actor/lr"],
            "prob_diff_max": data.get("actor/prob_diff_max", data.get(old + "max")),
            "prob_diff_mean": data.get("actor/prob_diff_mean", data.get(old + "mean")),
            "response_length": data["response_length/mean"],
            "prompt_length": data["prompt_length/mean"],
            "val_reward_mean": data.get(VALIDATION),
        }
        return json.loads(json.dumps(line, default=float))


def _get(batch: KVBatchMeta, *fields: str) -> Any:
    return tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id or "train", select_fields=list(fields))


def _fields(batch: KVBatchMeta, name: str) -> list[dict[str, Any]]:
    """A field that holds a dict a sample."""
    return [dict(getattr(value, "data", value)) for value in list(_get(batch, name)[name])]

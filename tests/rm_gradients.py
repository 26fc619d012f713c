"""A program for tests: stage rm's training, stopped before its first update, whose whole gradients it saves.

python -m tests.rm_gradients RM.yaml OUT.pt, alone or under torchrun.
"""

from __future__ import annotations

import os
import sys

import torch

from psychepass.cli import main
from reward_model.ranks import rank_and_world
from reward_model.trainer import PairTrainer


def whole(parameter: torch.Tensor) -> torch.Tensor | None:
    """A parameter's gradient over all ranks, before clipping."""
    if hasattr(parameter, "ds_id"):
        from deepspeed.utils import safe_get_full_grad

        return safe_get_full_grad(parameter)
    return parameter.grad


def save_and_stop(trainer: PairTrainer, path: str) -> None:
    gradients = {n: whole(p) for n, p in trainer.model.named_parameters() if p.requires_grad}
    if rank_and_world()[0] == 0:
        torch.save({n: g.clone() for n, g in gradients.items() if g is not None}, path)
    trainer.accelerator.wait_for_everyone()
    trainer.accelerator.end_training()
    os._exit(0)  # a thread of gloo's may hold a tensor yet: see psychepass.leaving


if __name__ == "__main__":
    step = PairTrainer.training_step

    def one_step(self, model, inputs, num_items_in_batch=None):
        if self.is_deepspeed_enabled:  # accelerate lets the engine update in the last backward
            model.step = lambda: save_and_stop(self, sys.argv[2])
        step(self, model, inputs, num_items_in_batch)
        save_and_stop(self, sys.argv[2])

    PairTrainer.training_step = one_step  # type: ignore[method-assign]
    main(["rm", sys.argv[1]])

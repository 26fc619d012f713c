"""verl's single controller, run in the stage's own process. Importing this imports verl and torch."""

from __future__ import annotations

from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import datasets
import ray
import transfer_queue as tq
from omegaconf import DictConfig, OmegaConf
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.trainer.ppo.v1 import AgentLoopManagerTQ
from verl.utils.config import validate_config

from psychepass.errors import UserError
from rl.trainer import GRPOTrainer


def fit(config: DictConfig, folder: Path, band: tuple[float, float] | None) -> None:
    """Validate the config, build workers, rollout and agent loop, train; Ray must be running.

    Does what verl's TaskRunnerV1.run does. What verl prints goes to verl.log in `folder`.
    """
    datasets.disable_progress_bars()
    with (folder / "verl.log").open("a", encoding="utf-8") as log, redirect_stdout(log):
        _fit(config, folder, band)


def refuse_company() -> None:
    """Raises UserError where another run is on this Ray cluster: verl's queue of replies is one a cluster, and each
    run would train on what the other's policy said."""
    try:
        ray.get_actor("TransferQueueController", namespace="transfer_queue")
    except ValueError:
        return
    raise UserError(
        "grpo: another run of verl is on this Ray cluster, and both would train on each other's replies; wait for its "
        "end, or set ray_address to null for a cluster of this run's own"
    )


def _fit(config: DictConfig, folder: Path, band: tuple[float, float] | None) -> None:
    validate_config(config, use_reference_policy=need_reference_policy(config), use_critic=need_critic(config))
    config.transfer_queue.enable = True
    OmegaConf.resolve(config)
    refuse_company()
    tq.init(config.transfer_queue)
    trainer: Any = None
    succeeded = False
    try:
        trainer = GRPOTrainer(config, folder, band)
        trainer.init()
        agent_loops: Any = AgentLoopManagerTQ.create(
            config=config,
            llm_client=trainer.get_llm_client(),
            teacher_client=trainer.get_teacher_client(),
            reward_loop_worker_handles=trainer.get_reward_handles(),
        )
        trainer.fit(agent_loops)
        succeeded = True
    finally:
        tracking = getattr(trainer, "logger", None)
        if tracking is not None:
            tracking.finish(exit_code=0 if succeeded else 1)
        tq.close()

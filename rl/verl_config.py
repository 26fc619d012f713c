"""GRPOConfig -> verl 0.9.1's configuration. The only file that knows verl's keys.

verl's packaged `ppo_trainer` config is composed by Hydra; `settings` names every key that differs from it.
A key that verl does not have is refused, so a renamed key of another verl version fails here and not
silently in a long run.
"""

from __future__ import annotations

import importlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from psychepass.errors import UserError
from psychepass.scoring import Scorer
from rl.config import GRPOConfig

AGENT = "psychepass_single_turn"
# keys that verl reads but does not list in its own YAML (in its command-line form they need a `+`)
UNLISTED = (
    "actor_rollout_ref.actor.checkpoint.save_lora_only",
    "actor_rollout_ref.actor.fsdp_config.mixed_precision",
    "actor_rollout_ref.ref.fsdp_config.mixed_precision",
    "actor_rollout_ref.model.override_config.attn_implementation",
    "data.apply_chat_template_kwargs.enable_thinking",
    "ray_kwargs.ray_init.",
    "trainer.v1.sampler.sampler_kwargs.",
)


@dataclass(frozen=True)
class Files:
    """Where a run reads and writes: the model's folder, the two prompt files, and the grpo/ folder."""

    model: Path
    train: Path
    dev: Path
    grpo: Path


def verl_config(config: GRPOConfig, files: Files, n_layers: int) -> DictConfig:
    """The whole configuration that verl's trainer takes. `n_layers` is the model's number of decoder layers.

    Raises:
        UserError: a key that this verl does not have.
    """
    GlobalHydra.instance().clear()
    with initialize_config_module("verl.trainer.config", version_base=None):
        composed = compose("ppo_trainer")
    return apply(composed, settings(config, files, n_layers))


def apply(composed: DictConfig, values: dict[str, Any]) -> DictConfig:
    """`composed` with `values` set; a key that is neither there nor in UNLISTED is refused."""
    for key, value in values.items():
        try:
            OmegaConf.update(composed, key, value, merge=True, force_add=key.startswith(UNLISTED))
        except OmegaConfBaseException as e:
            raise UserError(f"verl has no key {key!r} (value {value!r}): {str(e).splitlines()[0]}") from e
    return composed


def settings(config: GRPOConfig, files: Files, n_layers: int) -> dict[str, Any]:
    """verl's dotted keys and our values, hardware apart from the algorithm."""
    hardware = _on_gpu(config) if config.hardware == "gpu" else _on_cpu(config)
    return {**_algorithm(config), **_data(config, files), **_loop(config, files), **_lora(config, n_layers), **hardware}


def _algorithm(c: GRPOConfig) -> dict[str, Any]:
    """PsychePass eq. 3. The rewards that reach verl are standardised already (rl/reward.py), so verl only
    subtracts the group's mean: with one dimension that is the paper's (r - mean) / std."""
    actor = "actor_rollout_ref.actor."
    return {
        "algorithm.adv_estimator": "grpo",
        "algorithm.norm_adv_by_std_in_grpo": False,
        "algorithm.use_kl_in_reward": False,
        "critic.enable": False,
        actor + "optim.lr": c.learning_rate,
        actor + "ppo_mini_batch_size": c.batch_size,
        actor + "clip_ratio": c.clip_ratio,
        actor + "clip_ratio_low": c.clip_ratio,
        actor + "clip_ratio_high": c.clip_ratio,
        actor + "use_kl_loss": True,
        actor + "kl_loss_coef": c.kl_coef,
        actor + "kl_loss_type": "low_var_kl",
        actor + "entropy_coeff": c.entropy_coef,
        actor + "data_loader_seed": c.seed,
        actor + "fsdp_config.seed": c.seed,
        "actor_rollout_ref.rollout.n": c.responses,
        "actor_rollout_ref.rollout.temperature": c.temperature,
        "actor_rollout_ref.rollout.top_p": 1.0,
        "actor_rollout_ref.rollout.top_k": -1,
        "actor_rollout_ref.rollout.calculate_log_probs": True,
        "actor_rollout_ref.rollout.seed": c.seed,
    }


def _data(c: GRPOConfig, files: Files) -> dict[str, Any]:
    return {
        "data.train_files": [str(files.train)],
        "data.val_files": [str(files.dev)],
        "data.train_batch_size": c.batch_size,
        "data.val_max_samples": c.validation_prompts,
        "data.max_prompt_length": c.max_prompt_tokens,
        "data.max_response_length": c.max_response_tokens,
        "data.filter_overlong_prompts": False,  # rl/prompts.py has refused them
        "data.truncation": "error",
        "data.shuffle": True,
        "data.seed": c.seed,
        "data.dataloader_num_workers": 0,
        "data.apply_chat_template_kwargs.enable_thinking": False,
        "actor_rollout_ref.model.path": str(files.model),
    }


def _loop(c: GRPOConfig, files: Files) -> dict[str, Any]:
    """Rollout, reward, validation, checkpoints. Rewards come from the agent loop (one call a group), so no
    reward worker is needed."""
    rollout = "actor_rollout_ref.rollout."
    return {
        "reward.num_workers": 0,
        rollout + "agent.default_agent_loop": AGENT,
        rollout + "agent.agent_loop_config_path": str(files.grpo / "agent_loop.yaml"),
        rollout + "val_kwargs.n": 1,
        rollout + "val_kwargs.do_sample": True,
        rollout + "val_kwargs.temperature": c.temperature,
        "trainer.v1.trainer_mode": "sync",
        "trainer.v1.sampler.custom_sampler.path": "pkg://rl.trainer",
        "trainer.v1.sampler.custom_sampler.name": "CheckedReplayBuffer",
        "trainer.v1.sampler.sampler_kwargs.responses": c.responses,
        "trainer.v1.sampler.sampler_kwargs.poll_interval_s": 0.2 if c.hardware == "cpu" else 2.0,
        "trainer.v1.sampler.sampler_kwargs.timeout_s": c.group_timeout_s + c.scorer_timeout_s,
        "trainer.total_epochs": c.epochs,
        "trainer.total_training_steps": c.steps,
        "trainer.n_gpus_per_node": c.workers,
        "trainer.nnodes": c.nodes,
        "trainer.logger": ["wandb"] if c.wandb else [],
        "trainer.project_name": "psychepass",
        "trainer.experiment_name": Path(c.run).name,
        "trainer.default_local_dir": str(files.grpo / "checkpoints"),
        "trainer.rollout_data_dir": str(files.grpo / "rollouts"),
        "trainer.validation_data_dir": str(files.grpo / "validations"),
        "trainer.resume_mode": "auto",
        "trainer.save_freq": c.save_every,
        "trainer.test_freq": c.validate_every,
        "trainer.val_before_train": True,
        "trainer.max_actor_ckpt_to_keep": None,  # rl/checkpoints.py drops superseded ones when the next is complete
    }


def _lora(c: GRPOConfig, n_layers: int) -> dict[str, Any]:
    if c.lora is None:
        return {}
    top = n_layers if c.lora.top_layers is None else c.lora.top_layers
    if top > n_layers:
        raise UserError(f"lora.top_layers: {top} is more than the {n_layers} layers of {c.model}")
    numbers = "|".join(str(i) for i in range(n_layers - top, n_layers))
    return {
        "actor_rollout_ref.model.lora_rank": c.lora.rank,
        "actor_rollout_ref.model.lora_alpha": c.lora.alpha,
        "actor_rollout_ref.model.target_modules": rf".*\.layers\.({numbers})\..*_proj",
        "actor_rollout_ref.model.external_lib": "rl.seeded_lora",  # on CPUs rl.verl_cpu.engine, which imports it
        "actor_rollout_ref.actor.checkpoint.save_lora_only": True,
    }


def _has_flash() -> bool:
    """flash_attn may be there and made for another torch, or another package of that name."""
    try:
        return callable(importlib.import_module("flash_attn").flash_attn_func)
    except (ImportError, AttributeError):
        return False


def _on_gpu(c: GRPOConfig) -> dict[str, Any]:
    """vLLM and FSDP2 on the same GPUs; weights and optimizer wait in host memory while vLLM generates."""
    rollout = "actor_rollout_ref.rollout."
    flash = _has_flash()  # verl takes it for granted
    return {
        "actor_rollout_ref.actor.strategy": "fsdp2",
        "actor_rollout_ref.model.override_config.attn_implementation": "flash_attention_2" if flash else "sdpa",
        "actor_rollout_ref.actor.use_dynamic_bsz": True,
        "actor_rollout_ref.actor.ppo_max_token_len_per_gpu": c.tokens_per_worker,
        "actor_rollout_ref.actor.fsdp_config.param_offload": True,
        "actor_rollout_ref.actor.fsdp_config.optimizer_offload": True,
        "actor_rollout_ref.ref.fsdp_config.param_offload": True,
        rollout + "name": "vllm",
        rollout + "tensor_model_parallel_size": c.tensor_parallel,
        rollout + "gpu_memory_utilization": c.gpu_memory_utilization,
        rollout + "max_model_len": c.max_prompt_tokens + c.max_response_tokens,
        rollout + "max_num_batched_tokens": max(8192, c.max_prompt_tokens + c.max_response_tokens),
        **({"actor_rollout_ref.rollout.load_format": "safetensors"} if c.lora else {}),
    }


def _on_cpu(c: GRPOConfig) -> dict[str, Any]:
    """Our plugin in place of CUDA, NCCL and vLLM; fp32 throughout, so that both sides agree to 1e-6.

    One rollout server serves all ranks, hence the tensor-parallel size. Sampling and training use the same
    fp32 weights, so the sampler's log-probabilities are the old ones (`bypass_mode`) and one forward pass
    is saved; the engine reports their difference from the trainer's in each update.
    """
    fp32 = {"param_dtype": "fp32", "reduce_dtype": "fp32", "buffer_dtype": "fp32"}
    model, rollout = "actor_rollout_ref.model.", "actor_rollout_ref.rollout."
    values: dict[str, Any] = {
        "trainer.device": "cpu",
        "actor_rollout_ref.actor.strategy": "fsdp2",
        # a micro-batch is one group, whose prompt is then read once; verl's dynamic batches would mix groups
        "actor_rollout_ref.actor.use_dynamic_bsz": False,
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": c.responses,
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": c.responses,
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": c.responses,
        "actor_rollout_ref.actor.use_torch_compile": False,
        # otherwise threads add up the gradients of siblings in any order, and a run cannot be made again
        "actor_rollout_ref.actor.fsdp_config.full_determinism": True,
        "algorithm.rollout_correction.bypass_mode": True,
        model + "external_lib": "rl.verl_cpu.engine",
        model + "override_config.attn_implementation": "sdpa",
        model + "enable_gradient_checkpointing": False,
        model + "use_remove_padding": True,
        rollout + "name": "hf_cpu",
        rollout + "dtype": "float32",
        rollout + "tensor_model_parallel_size": c.workers * c.nodes,
        rollout + "free_cache_engine": False,
        rollout + "load_format": "safetensors",
        rollout + "agent.num_workers": 1,
        "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1,
        "transfer_queue.backend.SimpleStorage.total_storage_size": 8 * c.batch_size * c.responses + 1024,
    }
    for role in ("actor", "ref"):
        config = f"actor_rollout_ref.{role}.fsdp_config."
        values[config + "mixed_precision"] = fp32
        values[config + "use_torch_compile"] = False
        values[config + "reshard_after_forward"] = c.workers > 1
    return values


def hardware_differences(
    production: GRPOConfig, config: GRPOConfig, files: Files, n_layers: int
) -> list[dict[str, Any]]:
    """verl's keys that another `hardware` sets otherwise: what the words gpu and cpu stand for."""
    there, here = (verl_config(c, files, n_layers) for c in (production, config))
    keys = sorted({*_on_gpu(production), *_on_cpu(config)}) if production.hardware != config.hardware else []
    rows = []
    for key in keys:
        values = [OmegaConf.select(tree, key) for tree in (there, here)]
        production_value, value = (OmegaConf.to_container(v) if OmegaConf.is_config(v) else v for v in values)
        if production_value != value:
            rows.append({"key": f"verl: {key}", "production": production_value, "here": value})
    return rows


def agent_loop_yaml(config: GRPOConfig, scorer: Scorer) -> list[dict[str, Any]]:
    """What verl's agent workers need to build our loop: written to grpo/agent_loop.yaml."""
    return [
        {
            "name": AGENT,
            "_target_": "rl.agent_loop.SingleTurnLoop",
            "scorer": scorer.arguments(),
            "group_timeout_s": config.group_timeout_s,
        }
    ]


def environment(config: GRPOConfig) -> dict[str, str]:
    """Variables that the driver and every Ray process need before they import verl."""
    values = {
        "TRANSFER_QUEUE_ENABLE": "1",
        "VERL_LOGGING_LEVEL": "WARN",
        "TQ_LOGGING_LEVEL": "ERROR",
        "VERL_USE_EXTERNAL_MODULES": "rl.beside_trl",
    }
    if config.hardware == "cpu":
        values |= {
            "VERL_PLATFORM": "cpu",
            "VERL_USE_EXTERNAL_MODULES": "rl.beside_trl,rl.verl_cpu",
            # Ray gives each process one thread otherwise
            "OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // config.workers)),
            "MALLOC_ARENA_MAX": "2",  # heaps a process: each thread's own one is never given back
            "RAY_worker_niceness": "0",
            # Ray gives its own processes 5 to 60 s to start, which is too little on a busy machine
            "RAY_gcs_server_port_wait_time_s": "300",
            "RAY_gcs_rpc_server_connect_timeout_s": "300",
            "RAY_gcs_server_request_timeout_seconds": "300",
            "RAY_agent_register_timeout_ms": "300000",
            "RAY_worker_register_timeout_seconds": "300",
            # the GPUs that Ray hands out are tokens: nothing is to be hidden from anyone
            "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        }
    return values

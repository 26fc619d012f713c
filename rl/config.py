"""What a GRPO run is, in the paper's names and units; rl/verl_config.py turns it into verl's keys."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from psychepass.config import Config, TrackedConfig


class LoRAConfig(Config):
    """Low-rank adapters in place of full updates (Hu et al., 2021).

    `top_layers` adapts only the last so many decoder layers (None: all): on a CPU the lower ones then cost
    no backward pass.
    """

    rank: int = Field(ge=1)
    alpha: int = Field(ge=1)
    top_layers: int | None = Field(default=None, ge=1)


class GRPOConfig(TrackedConfig):
    """PsychePass section 3.3 and Appendix D.4. A prompt is a therapy turn; a group is its responses.

    `hardware` gpu is vLLM beside FSDP2 with offload; cpu is our plugin (rl/verl_cpu): gloo, fp32, a small
    rollout server. `workers` are the FSDP2 ranks of a node, so `batch_size * responses` must divide by
    `workers * nodes`. `temperature` must be the base policy's in `simulate`, because the likelihood guard
    compares with log-probabilities measured there. Steps stop after `epochs` or `steps`, what comes first.
    """

    model: str
    hardware: Literal["gpu", "cpu"] = "gpu"
    workers: int = Field(ge=1)
    nodes: int = Field(default=1, ge=1)
    ray_address: str | None = None

    batch_size: int = Field(ge=1)
    responses: int = Field(ge=2)
    epochs: int = Field(ge=1)
    steps: int | None = Field(default=None, ge=1)
    learning_rate: float = Field(gt=0)
    kl_coef: float = Field(ge=0)
    clip_ratio: float = Field(default=0.2, gt=0)
    entropy_coef: float = Field(default=0.0, ge=0)
    lora: LoRAConfig | None = None

    max_prompt_tokens: int = Field(ge=16)
    max_response_tokens: int = Field(ge=1)
    temperature: float = Field(gt=0)
    tokens_per_worker: int = Field(default=16384, ge=64)
    tensor_parallel: int = Field(default=1, ge=1)
    gpu_memory_utilization: float = Field(default=0.5, gt=0, lt=1)

    scorer_url: str | None = None
    scorer_timeout_s: float = Field(default=600.0, gt=0)
    group_timeout_s: float = Field(default=1800.0, gt=0)
    likelihood_guard: bool = True

    validate_every: int = Field(ge=1)
    validation_prompts: int = Field(ge=1)
    save_every: int = Field(ge=1)

    @model_validator(mode="after")
    def _check_divisible(self) -> Self:
        ranks = self.workers * self.nodes
        if self.batch_size % ranks:
            raise ValueError(f"batch_size {self.batch_size} must be divisible by workers * nodes = {ranks}")
        if ranks % self.tensor_parallel:
            raise ValueError(f"workers * nodes = {ranks} must be divisible by tensor_parallel {self.tensor_parallel}")
        if self.tokens_per_worker < self.max_prompt_tokens + self.max_response_tokens:
            raise ValueError(
                f"tokens_per_worker {self.tokens_per_worker} must hold one prompt and response "
                f"({self.max_prompt_tokens} + {self.max_response_tokens})"
            )
        return self

"""verl's FSDP2 engine on CPUs. Named by `external_lib`, so that each training worker loads it.

Beside what a missing accelerator forces (no pinned memory, no device moves), three things make it fast
where a forward pass is dear: siblings share their prompt (rl/packing.py), logits are computed for response
tokens only, and LoRA on upper layers stops the backward pass below them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from tensordict import TensorDict
from torch import Tensor
from torch.distributed.tensor import DTensor
from verl.utils import tensordict_utils as tu
from verl.workers.engine.base import EngineRegistry
from verl.workers.engine.fsdp import transformer_impl
from verl.workers.engine.utils import detach_tree

from psychepass.matmul import fast_fp32
from rl import seeded_lora  # noqa: F401
from rl.packing import pack

verl: Any = transformer_impl  # verl's decorators hide the types


def threads_per_worker() -> int:
    """The cores of this machine shared among the training workers on it."""
    workers = int(os.environ.get("RAY_LOCAL_WORLD_SIZE", "1"))
    return max(1, len(os.sched_getaffinity(0)) // workers)


@EngineRegistry.register(model_type="language_model", backend=["fsdp2"], device="cpu")
class FSDPEngineCPU(verl.FSDPEngineWithLMHead):
    """fp32 on gloo. `forward_step` replaces verl's packed forward, which needs FlashAttention to keep
    packed sequences apart."""

    def __init__(self, *args: Any, **kwargs: Any):
        torch.set_num_threads(threads_per_worker())
        fast_fp32()
        super().__init__(*args, **kwargs)

    def _build_lora_module(self, module: Any) -> Any:
        # verl makes the embeddings require a gradient for the sake of gradient checkpointing, which would
        # pull the backward pass through every frozen layer
        module.enable_input_require_grads = lambda: None
        return super()._build_lora_module(module)

    def _build_fsdp_module(self, module: Any) -> Any:
        # the reference model would ask for pinned memory; here its weights already are where they are used
        policy = verl.CPUOffloadPolicy
        verl.CPUOffloadPolicy = lambda **_: None
        try:
            return super()._build_fsdp_module(module)
        finally:
            verl.CPUOffloadPolicy = policy

    @contextmanager
    def disable_adapter(self) -> Iterator[None]:
        """The base model inside. PEFT's own switch also clears requires_grad, and FSDP2 copies that flag for
        good when it first gathers a parameter; verl's reference pass would be that first time here."""
        layers = [m for m in self.module.modules() if isinstance(m, LoraLayer)]
        for layer in layers:
            layer._disable_adapters = True
        try:
            yield
        finally:
            for layer in layers:
                layer._disable_adapters = False

    def forward_step(self, micro_batch: TensorDict, loss_function: Any, forward_only: bool) -> tuple[Tensor, dict]:
        log_probs, entropy = self._log_probs(micro_batch)
        model_output = {"log_probs": log_probs}
        if entropy is not None:
            model_output["entropy"] = entropy
        loss, metrics = torch.tensor(1.0), {}
        if loss_function is not None:
            loss, metrics = loss_function(
                model_output=model_output, data=micro_batch, dp_group=self.get_data_parallel_group()
            )
            metrics |= _probability_difference(log_probs, micro_batch)
        return loss, {"model_output": detach_tree(model_output), "loss": loss.detach().item(), "metrics": metrics}

    def _log_probs(self, micro_batch: TensorDict) -> tuple[Tensor, Tensor | None]:
        """Nested (batch, prompt + response): at t the log-probability of token t+1 where that is a response
        token, else 0; and the entropy there if it is asked for."""
        prompts, responses = list(micro_batch["prompts"].unbind(0)), list(micro_batch["responses"].unbind(0))
        packed = pack(prompts, responses)
        logits = self.module(
            input_ids=packed.input_ids_L[None],
            position_ids=packed.position_ids_L[None],
            attention_mask=packed.mask_LL[None, None],
            logits_to_keep=packed.read_K,
            use_cache=False,
        ).logits[0]
        logits_KV = logits / _temperature(micro_batch, packed.sequence_K)
        norm_K = logits_KV.logsumexp(-1)
        logprob_K = logits_KV.gather(-1, packed.targets_K[:, None])[:, 0] - norm_K
        entropy = None
        if tu.get_non_tensor_data(data=micro_batch, key="calculate_entropy", default=False):
            expected_K = (logits_KV.softmax(-1) * logits_KV).sum(-1)
            entropy = _unpack(norm_K - expected_K, prompts, responses)
        return _unpack(logprob_K, prompts, responses), entropy

    def get_per_tensor_param(self, **_: Any) -> tuple[Iterator[tuple[str, Tensor]], None]:
        """Only what an update can change, merged and in fp32 (verl would send merged LoRA in bf16): the
        rollout server has the rest from the model's folder."""
        return self._changed(), None

    @torch.no_grad()
    def _changed(self) -> Iterator[tuple[str, Tensor]]:
        state = self.module.state_dict()
        if not self._is_lora:
            for name, value in state.items():
                yield name, _full(value)
            return
        scaling = self.model_config.lora_alpha / self.model_config.lora_rank
        for name, value in state.items():
            stem, found, _ = name.partition(".base_layer.weight")
            if found and f"{stem}.lora_A.default.weight" in state:
                down, up = (_full(state[f"{stem}.lora_{x}.default.weight"]) for x in "AB")
                yield stem.removeprefix("base_model.model.") + ".weight", _full(value) + scaling * (up @ down)


def _full(value: Tensor) -> Tensor:
    return (value.full_tensor() if isinstance(value, DTensor) else value).detach()


def _temperature(micro_batch: TensorDict, sequence_K: Tensor) -> Tensor | float:
    temperature = micro_batch["temperature"]
    return temperature[sequence_K, None] if isinstance(temperature, Tensor) else float(temperature)


def _unpack(values_K: Tensor, prompts: list[Tensor], responses: list[Tensor]) -> Tensor:
    """Values of response tokens to verl's layout: shifted left by one, zero elsewhere, nested."""
    rows, start = [], 0
    for prompt, response in zip(prompts, responses, strict=True):
        row = values_K[start : start + len(response)]
        rows.append(torch.nn.functional.pad(row, (len(prompt) - 1, 1)))
        start += len(response)
    return torch.nested.as_nested_tensor(rows, layout=torch.jagged)


def _probability_difference(log_probs: Tensor, micro_batch: TensorDict) -> dict[str, float]:
    """|p_trainer - p_rollout| over the response tokens. On the first (here the only) pass of a step the
    trainer's weights are the sampler's, so this is the numerical difference of the two programs."""
    if "rollout_log_probs" not in micro_batch:
        return {}
    differences = []
    rows = zip(log_probs.unbind(0), micro_batch["rollout_log_probs"].unbind(0), strict=True)
    for trainer, rollout in rows:
        n = len(rollout)
        differences.append((trainer[-n - 1 : -1].detach().exp() - rollout.exp()).abs())
    every = torch.cat(differences)
    return {"prob_diff_max": every.max().item(), "prob_diff_mean": every.mean().item()}

"""Low-rank adapters on the backbone's linear layers, by peft; the head stays fully trained (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer

from reward_model.model import RewardModel


def add(model: RewardModel, rank: int, alpha: int, seed: int) -> None:
    """Freeze the backbone and put adapters, which begin at nothing, beside each of its linear layers."""
    adapters = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=_linear_names(model))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # the same on every rank
        inject_adapter_in_model(adapters, model.backbone)


def round_frozen(model: RewardModel) -> None:
    """Keep what is frozen in bf16; adapters and head stay fp32."""
    for parameter in model.backbone.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16)


def merge(model: RewardModel) -> None:
    """Add each adapter to its layer in fp32 and drop it: what is left is a plain backbone again."""
    model.backbone.float()
    for name, layer in list(model.backbone.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()  # type: ignore[operator]  # every layer of peft has it
            base = layer.get_base_layer()
            assert isinstance(base, torch.nn.Module)
            model.backbone.set_submodule(name, base)
    del model.backbone.peft_config


def _linear_names(model: RewardModel) -> list[str]:
    """The last parts of the names of the layers' linear modules, such as q_proj and down_proj."""
    found = {n.rsplit(".", 1)[-1] for n, m in model.layers.named_modules() if isinstance(m, torch.nn.Linear)}
    return sorted(found)

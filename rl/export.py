"""The trained policy as a Hugging Face folder that anyone can load, with a card that says what it is."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from psychepass.errors import UserError
from rl.config import GRPOConfig

CARD = """---
base_model: {base}
library_name: transformers
tags: [psychepass, grpo]
---

# Aligned policy of run {run}

{base} after {steps} steps of GRPO on verl ({samples} replies a step, learning rate {learning_rate}{lora}), with the
rewards of this run's reward model. Made by PsychePass from simulated sessions with fictional clients.

Research software. Clients are fictional; replies are machine-written and may be harmful. Not for use with people in
distress; does not replace a clinician. Reference-judge scores describe text features, not therapeutic competence.
If someone may be in danger, contact local emergency services.

Rewards: {rewards}. They show that training worked, not that therapy improved; see the run's report for the
comparison on held-out clients, with intervals, and for the gate on Crisis and Ethics.
"""


def export_policy(config: GRPOConfig, base: Path, checkpoint: Path, policy: Path, facts: dict[str, Any]) -> None:
    """Write `policy`: fp32 weights with LoRA merged, the tokenizer with its chat template, and README.md.

    `checkpoint` is the actor folder of one step; `facts` fills the card (steps, rewards). The folder appears
    whole or not at all.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    state = gather_shards(checkpoint)
    if config.lora is not None:
        merge_lora(model, state, config.lora.alpha / config.lora.rank)
    else:
        _load_all(model, state)
    part = policy.with_name(policy.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    model.save_pretrained(part)
    AutoTokenizer.from_pretrained(base).save_pretrained(part)
    (part / "README.md").write_text(_card(config, facts), encoding="utf-8")
    shutil.rmtree(policy, ignore_errors=True)
    part.rename(policy)


def gather_shards(checkpoint: Path) -> dict[str, Tensor]:
    """The full tensors of an FSDP2 checkpoint: each rank's file holds a slice of dimension 0."""
    files = sorted(checkpoint.glob("model_world_size_*_rank_*.pt"), key=lambda p: int(p.stem.rpartition("_")[2]))
    if not files:
        raise UserError(f"{checkpoint}: no model_world_size_*_rank_*.pt; is this the actor folder of a checkpoint?")
    logging.getLogger("torch.distributed.device_mesh").setLevel(logging.ERROR)  # no process group is needed
    shards = [torch.load(f, map_location="cpu", weights_only=False) for f in files]
    full = {}
    for name, first in shards[0].items():
        if hasattr(first, "to_local"):
            full[name] = torch.cat([s[name]._local_tensor for s in shards])[: first.shape[0]]
        else:
            full[name] = first
    return full


@torch.no_grad()
def merge_lora(model: Any, state: dict[str, Tensor], scaling: float) -> None:
    """Add scaling * B A of each adapter in `state` (PEFT's names) to the weight it belongs to."""
    for name, down in state.items():
        stem, found, _ = name.partition(".lora_A.default.weight")
        if found:
            up = state[f"{stem}.lora_B.default.weight"]
            weight = model.get_submodule(stem.removeprefix("base_model.model.")).weight
            weight += scaling * (up.float() @ down.float())


def _load_all(model: Any, state: dict[str, Tensor]) -> None:
    result = model.load_state_dict({k: v.float() for k, v in state.items()}, strict=False)
    missing = [k for k in result.missing_keys if k != "lm_head.weight"]
    if missing or result.unexpected_keys:
        raise UserError(f"checkpoint does not fit {type(model).__name__}: {missing[:3]} {result.unexpected_keys[:3]}")


def _card(config: GRPOConfig, facts: dict[str, Any]) -> str:
    lora = f", LoRA rank {config.lora.rank}" if config.lora else ""
    return CARD.format(
        base=config.model,
        run=Path(config.run).name,
        samples=config.batch_size * config.responses,
        learning_rate=f"{config.learning_rate:g}",
        lora=lora,
        **facts,
    )

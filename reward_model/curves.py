"""What the training curves of stage rm show of a step beside its loss. Legend: P pairs, S scored replies."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch

from reward_model.data import ClientStep
from reward_model.loss import PairLoss
from reward_model.model import RewardModel
from reward_model.packing import Packed

# dense bf16 operations a second, from the makers' data sheets, by a word of the device's name; the first match counts
PEAK_FLOPS = (
    ("A100", 312e12),
    ("A800", 312e12),
    ("H20", 148e12),
    ("H100 PCIe", 756e12),
    ("H100 NVL", 835e12),
    ("H100", 989e12),
    ("H800 PCIe", 756e12),
    ("H800", 989e12),
    ("H200 NVL", 835e12),
    ("H200", 989e12),
    ("B200", 2250e12),
)


def step_facts(result: PairLoss, rewards_S: torch.Tensor, step: ClientStep) -> dict[str, float]:
    """Loss, accuracy (together and `accuracy/<dimension>`, weighted), margin, the rewards' mean and spread, sizes.

    `reward_std` is the standard deviation over all rewards of the step, each counted once.
    """
    weight_P, correct_P = step.weight_P, result.correct_P.cpu()
    facts = {"loss": float(result.loss.detach()), "accuracy": result.accuracy, "margin": result.margin}
    for dimension in sorted(set(step.dimensions)):
        of_P = torch.tensor([d is dimension for d in step.dimensions])
        share = (weight_P * correct_P)[of_P].sum() / weight_P[of_P].sum()
        facts[f"accuracy/{dimension.value}"] = float(share)
    spread, mean = torch.std_mean(rewards_S.detach().float(), correction=0)
    facts |= {"reward_mean": float(mean), "reward_std": float(spread)}
    return facts | {"pairs": len(step.weight_P), "tokens": step.tokens}


def step_speed(facts: dict[str, float], seconds: float, flops: float, peak: float | None) -> dict[str, float]:
    """`tokens_per_second` over all ranks and, where the devices' `peak` together is known, `peak_flops_share`."""
    speed = {"seconds": round(seconds, 3), "tokens_per_second": round(facts["tokens"] / seconds, 1)}
    return speed | ({} if peak is None else {"peak_flops_share": flops / seconds / peak})


def peak_flops(device: torch.device, precision: str) -> float | None:
    """Dense bf16 operations a second of one device; None where they are not known: CPU, fp32, another name."""
    if device.type != "cuda" or precision != "bf16":
        return None
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(name: str) -> float | None:
    """By the name that CUDA gives the device; None for one that is not listed, or for a part of one (MIG)."""
    if "MIG" in name.split():
        return None
    return next((peak for known, peak in PEAK_FLOPS if re.search(rf"\b{known}\b", name)), None)


def training_flops(model: RewardModel, trees: Iterable[Packed]) -> float:
    """Operations that the loss and gradient of a step need, over all ranks; what is recomputed is not counted.

    Forward: 2 for each token and weight of a linear layer; 4 x heads x head dimension for each layer, token and key
    that the token sees: one more than its position, however it is packed. Backward: the same again for the slopes of
    what comes in, from the lowest trained layer up, and for the weights that are trained. Embedding, norms, softmax,
    adapters and head are left out (model FLOPs utilisation: PaLM, arXiv 2204.02311, appendix B).
    """
    trees = list(trees)
    tokens = sum(t.tokens for t in trees)
    seen = sum(int((t.position_ids_T + 1).sum()) for t in trees)
    config = model.backbone.config
    width = config.num_attention_heads * (
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    total, slopes = 0.0, False
    for layer in model.layers:
        slopes = slopes or any(p.requires_grad for p in layer.parameters())
        matrices = [p for n, p in layer.named_parameters() if len(_shape(p)) == 2 and "lora_" not in n]
        whole = sum(_shape(p).numel() for p in matrices)
        trained = sum(_shape(p).numel() for p in matrices if p.requires_grad)
        total += 2.0 * tokens * (whole * (1 + slopes) + trained) + 4.0 * width * seen * (3 if slopes else 1)
    return total


def _shape(parameter: torch.nn.Parameter) -> torch.Size:
    """Also of one that ZeRO-3 keeps in parts."""
    return getattr(parameter, "ds_shape", parameter.shape)

"""The Bradley-Terry loss (paper, equation 2), in fp32; pure functions. Legend: P pairs, S scored replies."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.nn.functional import softplus


class PairLoss(NamedTuple):
    """`loss` is differentiable; `accuracy` and `margin` are weighted means, accuracy of `correct_P`: 1, 0 or a half."""

    loss: torch.Tensor
    accuracy: float
    margin: float
    correct_P: torch.Tensor


def bradley_terry(delta_P: torch.Tensor, weight_P: torch.Tensor) -> torch.Tensor:
    """sum w softplus(-delta) / sum w, with delta = r(chosen) - r(rejected): log 2 where all rewards are equal."""
    delta_P, weight_P = delta_P.float(), weight_P.float()
    return (weight_P * softplus(-delta_P)).sum() / weight_P.sum()


def pair_loss(
    rewards_S: torch.Tensor,
    chosen_PS: torch.Tensor,
    rejected_PS: torch.Tensor,
    weight_P: torch.Tensor,
    centering: float,
) -> PairLoss:
    """Loss over pairs whose sides are means of rewards: each row of `chosen_PS` and `rejected_PS` sums to 1.

    `centering` times the weighted mean of (r_chosen + r_rejected)^2 keeps rewards near 0 (arXiv 2312.09244).
    """
    chosen_P, rejected_P = chosen_PS @ rewards_S.float(), rejected_PS @ rewards_S.float()
    delta_P = chosen_P - rejected_P
    loss = bradley_terry(delta_P, weight_P)
    if centering:
        loss = loss + centering * (weight_P * (chosen_P + rejected_P) ** 2).sum() / weight_P.sum()
    share_P = weight_P / weight_P.sum()
    with torch.no_grad():
        correct_P = (delta_P > 0).float() + 0.5 * (delta_P == 0).float()
        return PairLoss(loss, float((share_P * correct_P).sum()), float((share_P * delta_P).sum()), correct_P)

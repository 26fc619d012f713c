"""Responses of one prompt share it in a forward pass: [prompt, response 1, …, response n] in one row.

A causal mask that hides the responses from each other, and positions that start again after the prompt,
make each token see what it would see alone. With a prompt of P tokens and n responses of R, a group costs
P + nR tokens in place of n(P + R).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """One row of L tokens that holds all sequences of a micro-batch.

    input_ids_L, position_ids_L; mask_LL is True where a token may look. `read_K` are the places whose logits
    predict a response token, `targets_K` those tokens, `sequence_K` the sequence that each belongs to; within
    a sequence they stand in order.
    """

    input_ids_L: Tensor
    position_ids_L: Tensor
    mask_LL: Tensor
    read_K: Tensor
    targets_K: Tensor
    sequence_K: Tensor


def pack(prompts: list[Tensor], responses: list[Tensor]) -> Packed:
    """Pack sequences; those with equal prompts share it. The last token of a response is only a target.

    Raises:
        ValueError: an empty prompt or response.
    """
    if any(not len(p) for p in prompts) or any(not len(r) for r in responses):
        raise ValueError("every sequence needs at least one prompt token and one response token")
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, prompt in enumerate(prompts):
        groups.setdefault(tuple(prompt.tolist()), []).append(number)

    ids, positions, group_of, segment_of = [], [], [], []
    read: list[Tensor] = [torch.empty(0, dtype=torch.long)] * len(prompts)
    length = 0

    def add(tokens: Tensor, start: int, group: int, segment: int) -> None:
        nonlocal length
        ids.append(tokens)
        positions.append(torch.arange(start, start + len(tokens)))
        group_of.append(torch.full((len(tokens),), group))
        segment_of.append(torch.full((len(tokens),), segment))
        length += len(tokens)

    for group, members in enumerate(groups.values()):
        prompt = prompts[members[0]]
        add(prompt, 0, group, 0)
        last_of_prompt = length - 1
        for segment, number in enumerate(members, start=1):
            fed = responses[number][:-1]
            read[number] = torch.cat([torch.tensor([last_of_prompt]), torch.arange(length, length + len(fed))])
            add(fed, len(prompt), group, segment)

    group_L, segment_L = torch.cat(group_of), torch.cat(segment_of)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same_group = group_L[:, None] == group_L[None, :]
    visible = (segment_L[None, :] == 0) | (segment_L[:, None] == segment_L[None, :])
    return Packed(
        input_ids_L=torch.cat(ids),
        position_ids_L=torch.cat(positions),
        mask_LL=causal & same_group & visible,
        read_K=torch.cat(read),
        targets_K=torch.cat(responses),
        sequence_K=torch.repeat_interleave(torch.tensor([len(r) for r in responses])),
    )

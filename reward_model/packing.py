"""Shared prefixes are encoded once: a session, or a group of replies, is one tree of token segments.

A session is a trunk (all its turns); each (scored turn, dimension) is a branch of a few tokens that attends to
the trunk up to its turn. A group is a trunk (the context), a branch a response, and a branch a dimension on
each. Every token sees exactly the tokens that it would see in the sequence of its own (the naive form), at the
same positions, so the rewards are equal up to rounding. Legend: T tokens, K trunk tokens, B = T - K branch
tokens, S scored tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

Ids = tuple[int, ...]


@dataclass(frozen=True)
class Branch:
    """`ids` that follow the first `attach` tokens of `parent`: -1 is the trunk, else an earlier branch."""

    ids: Ids
    parent: int
    attach: int
    scored: bool = True


@dataclass(frozen=True)
class Packed:
    """One tree, laid out as trunk, then branches in order.

    input_ids_T and position_ids_T (int64); mask_BT (bool): what each branch token may attend to; the trunk is
    plainly causal. score_index_S: the last token of each scored branch, in order.
    """

    input_ids_T: torch.Tensor
    position_ids_T: torch.Tensor
    mask_BT: torch.Tensor
    score_index_S: torch.Tensor

    @property
    def tokens(self) -> int:
        return len(self.input_ids_T)

    def to(self, device: torch.device | str) -> Packed:
        return Packed(*(getattr(self, f).to(device) for f in self.__dataclass_fields__))


def pack(trunk: Ids, branches: Sequence[Branch]) -> Packed:
    """Lay a tree out.

    Raises:
        ValueError: an empty trunk or branch, a parent that does not come first, or an attach out of range.
    """
    starts = [len(trunk)]
    for branch in branches:
        starts.append(starts[-1] + len(branch.ids))
    total = starts[-1]
    mask_TT = torch.zeros(total, total, dtype=torch.bool)
    mask_TT[: len(trunk), : len(trunk)] = torch.ones(len(trunk), len(trunk), dtype=torch.bool).tril()
    position_ids_T = torch.arange(total)
    for number, branch in enumerate(branches):
        parent_start, parent_end = (0, len(trunk)) if branch.parent < 0 else starts[branch.parent : branch.parent + 2]
        if not branch.ids or branch.parent >= number or not 0 < branch.attach <= parent_end - parent_start:
            raise ValueError(f"branch {number} has {len(branch.ids)} ids on parent {branch.parent} at {branch.attach}")
        rows = slice(starts[number], starts[number + 1])
        last_seen = parent_start + branch.attach - 1
        mask_TT[rows] = mask_TT[last_seen]
        mask_TT[rows, rows] = torch.ones(len(branch.ids), len(branch.ids), dtype=torch.bool).tril()
        position_ids_T[rows] = position_ids_T[last_seen] + 1 + torch.arange(len(branch.ids))
    return Packed(
        input_ids_T=torch.tensor([*trunk, *(i for b in branches for i in b.ids)]),
        position_ids_T=position_ids_T,
        mask_BT=mask_TT[len(trunk) :].clone(),
        score_index_S=torch.tensor([starts[n + 1] - 1 for n, b in enumerate(branches) if b.scored], dtype=torch.long),
    )


def pack_sequence(ids: Ids) -> Packed:
    """The naive form: one sequence, its last token scored."""
    return pack(ids[:-1], [Branch(ids[-1:], parent=-1, attach=len(ids) - 1)])


def pack_group(context: Ids, responses: Sequence[Ids], suffixes: Sequence[Ids]) -> Packed:
    """R responses to one context, each asked D suffixes; scores come as R x D, row by row."""
    branches = []
    for response in responses:
        parent = len(branches)
        branches.append(Branch(response, parent=-1, attach=len(context), scored=False))
        branches += [Branch(suffix, parent=parent, attach=len(response)) for suffix in suffixes]
    return pack(context, branches)


@dataclass(frozen=True)
class Window:
    """Turns `start` to `stop` (exclusive, indices) of a session, and those of them that are scored here."""

    start: int
    stop: int
    scored: tuple[int, ...]


def windows(lengths: Sequence[int], scored: Sequence[int], budget: int) -> list[Window]:
    """Cover a session by windows of at most `budget` tokens that start on turn boundaries.

    `lengths` are the turns' tokens, `scored` turn indices; each lies in exactly one window. A session within
    the budget is one window. A later window begins with at least half of it, if there is that much, as the
    history of its first scored turn. Turns after the last scored one are left out.

    Raises:
        ValueError: a scored turn alone is over the budget.
    """
    found = []
    left = sorted(set(scored))
    while left:
        start = _start(lengths, left[0], budget, whole=not found)
        stop, total = start, 0
        while stop <= left[-1] and total + lengths[stop] <= budget:
            total += lengths[stop]
            stop += 1
        inside = tuple(t for t in left if t < stop)
        if not inside:
            raise ValueError(f"turn {left[0]} has {lengths[left[0]]} tokens; a window holds {budget}")
        found.append(Window(start, inside[-1] + 1, inside))
        left = left[len(inside) :]
    return found


def _start(lengths: Sequence[int], target: int, budget: int, whole: bool) -> int:
    """Turn 0 if `target` is then within the first window, else as early as half the budget allows."""
    if whole and sum(lengths[: target + 1]) <= budget:
        return 0
    start, total = target, lengths[target]
    while start > 0 and total + lengths[start - 1] <= budget // 2:
        start -= 1
        total += lengths[start]
    return start

"""Shared prefixes are encoded once: a session, or a group of replies, is one tree of token segments.

A session is a trunk (all its turns); each (scored turn, dimension) is a branch of a few tokens that attends to
the trunk up to its turn. A group is a trunk (the context), a branch a response, and a twig a dimension on each.
Every token sees exactly the tokens that it would see in the sequence of its own (the naive form), at the same
positions, so the rewards are equal up to rounding. Legend: T tokens, K trunk tokens, B = T - K branch tokens,
S scored tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

Ids = tuple[int, ...]
BLOCK = 512  # branch tokens of a block: fewer make short, slow products; more make forbidden (query, key) pairs


@dataclass(frozen=True)
class Branch:
    """`ids` that follow the first `attach` tokens of the trunk, and `twigs` that each follow those ids.

    Each twig's last token is scored; without twigs, that of the branch.
    """

    ids: Ids
    attach: int
    twigs: tuple[Ids, ...] = ()


class Block(NamedTuple):
    """Branch tokens `start` to `stop` (exclusive): whole branches, none of which sees more than `seen` of the trunk."""

    start: int
    stop: int
    seen: int


@dataclass(frozen=True)
class Packed:
    """One tree, laid out as trunk, then each branch with its twigs.

    input_ids_T and position_ids_T (int64). The mask, in two numbers a branch token instead of B x T: it sees the
    trunk's first seen_B tokens, and is seen by itself and the later branch tokens up to end_B (exclusive; branch
    tokens are counted from the trunk's end). The trunk is plainly causal. `blocks` cut the branches into parts
    that do not see each other. score_index_S: the scored tokens, in order.
    """

    input_ids_T: torch.Tensor
    position_ids_T: torch.Tensor
    seen_B: torch.Tensor
    end_B: torch.Tensor
    score_index_S: torch.Tensor
    blocks: tuple[Block, ...]

    @property
    def tokens(self) -> int:
        return len(self.input_ids_T)

    @property
    def trunk(self) -> int:
        return len(self.input_ids_T) - len(self.seen_B)

    def to(self, device: torch.device | str) -> Packed:
        return replace(self, **{k: v.to(device) for k, v in vars(self).items() if isinstance(v, torch.Tensor)})


def pack(trunk: Ids, branches: Sequence[Branch]) -> Packed:
    """Lay a tree out.

    Raises:
        ValueError: an empty trunk, branch or twig, or an attach out of range.
    """
    if not trunk:
        raise ValueError("the trunk is empty")
    ids, positions = list(trunk), list(range(len(trunk)))
    seen, ends, scored = [], [], []

    def lay(segment: Ids, position: int, attach: int, end: int) -> None:
        ids.extend(segment)
        positions.extend(range(position, position + len(segment)))
        seen.extend([attach] * len(segment))
        ends.extend([end] * len(segment))

    for number, (own, attach, twigs) in enumerate((b.ids, b.attach, b.twigs) for b in branches):
        lengths = [len(own), *map(len, twigs)]
        if not all(lengths) or not 0 < attach <= len(trunk):
            raise ValueError(f"branch {number} has segments of {lengths} ids at {attach} of a trunk of {len(trunk)}")
        lay(own, attach, attach, len(seen) + sum(lengths))
        for twig in twigs:
            lay(twig, attach + len(own), attach, len(seen) + len(twig))
            scored.append(len(ids) - 1)
        if not twigs:
            scored.append(len(ids) - 1)
    return Packed(
        input_ids_T=torch.tensor(ids),
        position_ids_T=torch.tensor(positions),
        seen_B=torch.tensor(seen, dtype=torch.long),
        end_B=torch.tensor(ends, dtype=torch.long),
        score_index_S=torch.tensor(scored, dtype=torch.long),
        blocks=blocks(seen, ends),
    )


def blocks(seen: Sequence[int], ends: Sequence[int]) -> tuple[Block, ...]:
    """Whole branches, told apart by the numbers of Packed: as many in a block as fit into BLOCK tokens, or one."""
    found = []
    start = 0
    while start < len(ends):
        stop = ends[start]
        while stop < len(ends) and ends[stop] - start <= BLOCK:
            stop = ends[stop]
        found.append(Block(start, stop, max(seen[start:stop])))
        start = stop
    return tuple(found)


def block_mask(packed: Packed, block: Block) -> torch.Tensor:
    """What a block's n tokens may attend to: bool [n, seen + n], the trunk's first `seen` tokens, then the block."""
    own = slice(block.start, block.stop)
    query = torch.arange(block.start, block.stop, device=packed.end_B.device)[:, None]
    trunk = torch.arange(block.seen, device=packed.end_B.device) < packed.seen_B[own, None]
    return torch.cat([trunk, (query >= query.T) & (query < packed.end_B[own])], dim=1)


def pack_sequence(ids: Ids, scored: Sequence[int] = (-1,)) -> Packed:
    """One plain sequence, such as the naive form; `scored` are places in it."""
    places = torch.arange(len(ids))[list(scored)]
    return replace(pack(ids, []), score_index_S=places)


def pack_group(context: Ids, responses: Sequence[Ids], suffixes: Sequence[Ids]) -> Packed:
    """R responses to one context, each asked D >= 1 suffixes; scores come as R x D, row by row."""
    return pack(context, [Branch(response, len(context), tuple(suffixes)) for response in responses])


@dataclass(frozen=True)
class Window:
    """Turns `start` to `stop` (exclusive, indices) of a session, and those of them that are scored here."""

    start: int
    stop: int
    scored: tuple[int, ...]


def windows(lengths: Sequence[int], scored: Sequence[int], budget: int) -> list[Window]:
    """Cover a session by windows of at most `budget` tokens that start on turn boundaries.

    `lengths` are the turns' tokens, `scored` turn indices; each lies in exactly one window. A session within the budget
    is one window. A later window begins so early that its first scored turn and the history before it fill at most
    half of it: the other half is for turns to come. Turns after the last scored one are left out.

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

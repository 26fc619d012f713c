"""Groups about one conversation share a tree: a context that begins another context is encoded with it once.

Callers often ask reply by reply, or turn by turn of one session. Taken together, such groups cost one trunk
and their own short branches. Groups of different conversations have nothing to share and are never joined.
A joined group sees the tokens, at the positions, that it would see alone; its rewards differ by rounding only.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import eq
from typing import NamedTuple

from reward_model.packing import Branch, Packed, pack, pack_group
from training.render import Ids


class Rendered(NamedTuple):
    """A group as token ids: R responses and D suffixes, the questions about a dimension."""

    context: Ids
    responses: tuple[Ids, ...]
    suffixes: tuple[Ids, ...]

    @property
    def branch_tokens(self) -> int:
        questions = len(self.responses) * sum(len(s) for s in self.suffixes)
        return sum(len(r) for r in self.responses) + questions


def joinable(groups: Sequence[Rendered], max_tokens: int) -> list[int]:
    """The first group and all that go into one tree with it, as ascending indices.

    Of two contexts the shorter is a prefix of the longer. Each is at least half the trunk, since a group with
    little to share would cost more attention over a long trunk than it saves; the tree has at most `max_tokens`
    tokens, unless the first group alone has more.
    """
    first, *others = groups
    trunk, shortest, branch_tokens = first.context, len(first.context), first.branch_tokens
    found = [0]
    for index, group in enumerate(others, start=1):
        shorter, longer = sorted((trunk, group.context), key=len)
        least, tokens = min(shortest, len(shorter)), branch_tokens + group.branch_tokens
        if 2 * least >= len(longer) and len(longer) + tokens <= max_tokens and all(map(eq, shorter, longer)):
            found.append(index)
            trunk, shortest, branch_tokens = longer, least, tokens
    return found


def pack_groups(groups: Sequence[Rendered]) -> Packed:
    """Joinable groups as one tree; scores come group by group, each R x D, row by row."""
    if len(groups) == 1:
        return pack_group(*groups[0])
    branches = [Branch(r, len(g.context), g.suffixes) for g in groups for r in g.responses]
    return pack(max((g.context for g in groups), key=len), branches)


def parted(rewards_S: Sequence[float], groups: Sequence[Rendered]) -> list[list[list[float]]]:
    """A tree's scores as [group][response][dimension]."""
    left = iter(rewards_S)
    return [[[next(left) for _ in g.suffixes] for _ in g.responses] for g in groups]
